//! What somebody may have meant by a name that does not exist.

/// `; did you mean 'temperature'?` where a known name is similar, else nothing.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    closest(name, known).first().map_or_else(String::new, |candidate| format!("; did you mean '{candidate}'?"))
}

/// The known names that are similar, the most similar first. The name itself is none of them: where it is known and still wrong,
/// it was not a misspelling.
pub(crate) fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    // The measure and the threshold of clap's own suggestions. A name of that length is no misspelling.
    const SIMILAR: f64 = 0.7;
    if name.len() > 100 {
        return Vec::new();
    }
    let rated = known.into_iter().map(|candidate| (strsim::jaro(name, candidate), candidate));
    let is_similar = |(similarity, candidate): &(f64, &str)| *similarity > SIMILAR && *candidate != name;
    let mut similar: Vec<(f64, &str)> = rated.filter(is_similar).collect();
    similar.sort_by(|one, other| other.0.total_cmp(&one.0));
    similar.into_iter().map(|(_, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::{closest, did_you_mean};

    #[test]
    fn the_most_similar_name_is_suggested() {
        let known = ["temperature", "top_k", "top_p"];
        assert_eq!(did_you_mean("temprature", known), "; did you mean 'temperature'?");
        assert_eq!(did_you_mean("topp", known), "; did you mean 'top_p'?");
        assert_eq!(did_you_mean("banana", known), "");
        assert_eq!(did_you_mean("top_p", known), "; did you mean 'top_k'?", "it is not what it is");
        assert_eq!(closest("top_", known), ["top_k", "top_p"]);
        assert_eq!(did_you_mean(&"t".repeat(1 << 20), known), "");
    }
}
