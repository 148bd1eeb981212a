//! Mixtures as written on the command line: `sql`, `sql*0.5`, `sql*0.7+wit*0.3`.

use std::str::FromStr;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// An ordered list of (adapter, weight); the base model if empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MixtureArg(pub(super) Vec<(String, f32)>);

impl FromStr for MixtureArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split('+').map(part).collect::<Result<_, _>>().map(Self)
    }
}

fn part(text: &str) -> Result<(String, f32), String> {
    let (name, weight) = match text.rsplit_once('*') {
        None => (text, 1.0),
        Some((name, weight)) => match weight.trim().parse::<f32>() {
            Ok(weight) if weight.is_finite() => (name, weight),
            _ => return Err(format!("'{}' is not a finite weight", weight.trim())),
        },
    };
    match name.trim() {
        "" => Err("an adapter's name is missing; write NAME, NAME*WEIGHT or NAME*WEIGHT+NAME*WEIGHT".to_owned()),
        name => Ok((name.to_owned(), weight)),
    }
}

impl std::fmt::Display for MixtureArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("base");
        }
        for (i, (name, weight)) in self.0.iter().enumerate() {
            let plus = if i > 0 { " + " } else { "" };
            write!(f, "{plus}{name}")?;
            if *weight != 1.0 {
                write!(f, "*{weight}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for MixtureArg {
    /// As in a JSON request: `null` for the base, else `{name: weight}` in order.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_unit();
        }
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, weight) in &self.0 {
            map.serialize_entry(name, weight)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MixtureArg, String> {
        text.parse()
    }

    fn mixture(parts: &[(&str, f32)]) -> MixtureArg {
        MixtureArg(parts.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect())
    }

    #[test]
    fn a_mixture_is_names_with_weights_in_order() {
        assert_eq!(parse("sql"), Ok(mixture(&[("sql", 1.0)])));
        assert_eq!(parse("wit*0.3+sql*0.7"), Ok(mixture(&[("wit", 0.3), ("sql", 0.7)])));
        assert_eq!(parse(" sql * -0.5 + sql"), Ok(mixture(&[("sql", -0.5), ("sql", 1.0)])));
        assert_eq!(parse("a*b*2"), Ok(mixture(&[("a*b", 2.0)])), "the last star begins the weight");
    }

    #[test]
    fn malformed_mixtures_are_refused() {
        for text in ["", "sql*", "*0.5", "sql+", "sql*x", "sql*nan", "sql*inf", "+", "sql*1e39"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn it_is_displayed_as_it_is_written() {
        assert_eq!(parse("sql*0.7+wit").expect("parses").to_string(), "sql*0.7 + wit");
        assert_eq!(MixtureArg::default().to_string(), "base");
    }

    #[test]
    fn json_keeps_the_order() {
        let text = |m: &MixtureArg| serde_json::to_string(m).expect("serializes");
        assert_eq!(text(&mixture(&[("wit", 0.5), ("sql", 1.0)])), r#"{"wit":0.5,"sql":1.0}"#);
        assert_eq!(text(&MixtureArg::default()), "null");
    }
}
