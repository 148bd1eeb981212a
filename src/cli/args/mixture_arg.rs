//! Mixtures as written on the command line: `sql`, `sql*0.5`, `sql*0.7+wit*0.3`.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::engine::{AdapterRef, Request};

/// An ordered list of (adapter, weight); the base model if empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct MixtureArg(pub(in crate::cli) Vec<(String, f32)>);

impl MixtureArg {
    /// The mixture of a request.
    pub(in crate::cli) fn of(request: &Request) -> Self {
        Self(request.adapters.iter().map(|(adapter, weight)| (adapter.label(), *weight)).collect())
    }

    /// Several of them, joined in order.
    pub(in crate::cli) fn joined(mixtures: &[Self]) -> Self {
        Self(mixtures.iter().flat_map(|mixture| mixture.0.clone()).collect())
    }

    /// The adapters as a request names them.
    pub(in crate::cli) fn refs(&self) -> Vec<(AdapterRef, f32)> {
        self.0.iter().map(|(name, weight)| (AdapterRef::Name(name.clone()), *weight)).collect()
    }
}

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
    /// As a JSON request may have it, and as Python's results have it: `null` for the base, a name for one adapter of weight 1,
    /// else `{name: weight}` in order, or pairs if a name appears twice.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [] => return serializer.serialize_unit(),
            [(name, 1.0)] => return serializer.serialize_str(name),
            parts if is_repeated(parts) => return parts.serialize(serializer),
            _ => {}
        }
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, weight) in &self.0 {
            map.serialize_entry(name, weight)?;
        }
        map.end()
    }
}

/// Whether a name appears twice, which an object cannot say.
fn is_repeated(parts: &[(String, f32)]) -> bool {
    parts.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len() < parts.len()
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
    fn json_says_what_python_says_and_keeps_the_order() {
        let text = |m: &MixtureArg| serde_json::to_string(m).expect("serializes");
        assert_eq!(text(&mixture(&[("wit", 0.5), ("sql", 1.0)])), r#"{"wit":0.5,"sql":1.0}"#);
        assert_eq!(text(&MixtureArg::default()), "null");
        assert_eq!(text(&mixture(&[("sql", 1.0)])), r#""sql""#);
        assert_eq!(text(&mixture(&[("sql", 0.5)])), r#"{"sql":0.5}"#);
        assert_eq!(text(&mixture(&[("a", 0.5), ("a", 0.25)])), r#"[["a",0.5],["a",0.25]]"#);
    }
}
