//! The known name that a misspelled one is closest to.

/// `; did you mean 'temperature'?`, or nothing if no known name is similar.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // The measure and the threshold of clap's own suggestions. A name of that length is no misspelling.
    const SIMILAR: f64 = 0.7;
    if name.len() > 100 {
        return String::new();
    }
    let best = known
        .into_iter()
        .map(|candidate| (strsim::jaro(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    best.map_or_else(String::new, |(_, candidate)| format!("; did you mean '{candidate}'?"))
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn the_most_similar_name_is_suggested() {
        let known = ["temperature", "top_k", "top_p"];
        assert_eq!(did_you_mean("temprature", known), "; did you mean 'temperature'?");
        assert_eq!(did_you_mean("topp", known), "; did you mean 'top_p'?");
        assert_eq!(did_you_mean("banana", known), "");
        assert_eq!(did_you_mean(&"t".repeat(1 << 20), known), "");
    }
}
