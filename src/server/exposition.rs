//! Prometheus' text form in one order: metrics by name, each under its help and type, and its series by their labels.

/// The same metrics in order, so that two scrapes can be compared line by line.
pub fn ordered(text: &str) -> String {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        // Its help, its type and its samples follow each other.
        let name = line.strip_prefix("# ").and_then(|comment| comment.split(' ').nth(1));
        match (families.last_mut(), name) {
            (Some(family), None) => family.samples.push(line),
            (Some(family), Some(name)) if family.name == name => family.head.push(line),
            (_, Some(name)) => families.push(Family { name, head: vec![line], samples: Vec::new() }),
            (None, None) => {}
        }
    }
    families.sort_by_key(|family| family.name);
    let mut out = String::with_capacity(text.len());
    for Family { head, mut samples, .. } in families {
        // Stable: what belongs to one series of a histogram is in order already, its buckets by their limits.
        samples.sort_by(|one, other| series(one).cmp(series(other)));
        for line in head.into_iter().chain(samples) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// A metric.
struct Family<'t> {
    name: &'t str,
    /// Its help and type.
    head: Vec<&'t str>,
    samples: Vec<&'t str>,
}

/// The labels of a sample, without the limit of a bucket, which is the last one.
fn series(sample: &str) -> &str {
    let labels = sample.split_once('{').map_or("", |(_, labels)| labels);
    let labels = labels.rsplit_once('}').map_or("", |(labels, _)| labels);
    match labels.rfind("le=\"") {
        Some(0) => "",
        Some(at) if labels[..at].ends_with(',') => &labels[..at - 1],
        _ => labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_series_have_one_order() {
        let text = "\
# HELP z_total What z counts
# TYPE z_total counter
z_total{adapter=\"wit\"} 2
z_total{adapter=\"a,le=\\\"b\"} 3
z_total{adapter=\"sql\"} 1

# HELP t How long
# TYPE t histogram
t_bucket{adapter=\"sql\",le=\"0.5\"} 1
t_bucket{adapter=\"sql\",le=\"10\"} 2
t_bucket{adapter=\"sql\",le=\"+Inf\"} 2
t_sum{adapter=\"sql\"} 3.5
t_count{adapter=\"sql\"} 2
t_bucket{adapter=\"base\",le=\"0.5\"} 0
t_bucket{adapter=\"base\",le=\"+Inf\"} 1
t_sum{adapter=\"base\"} 9
t_count{adapter=\"base\"} 1

# TYPE a gauge
a 5
";
        let expected = "\
# TYPE a gauge
a 5
# HELP t How long
# TYPE t histogram
t_bucket{adapter=\"base\",le=\"0.5\"} 0
t_bucket{adapter=\"base\",le=\"+Inf\"} 1
t_sum{adapter=\"base\"} 9
t_count{adapter=\"base\"} 1
t_bucket{adapter=\"sql\",le=\"0.5\"} 1
t_bucket{adapter=\"sql\",le=\"10\"} 2
t_bucket{adapter=\"sql\",le=\"+Inf\"} 2
t_sum{adapter=\"sql\"} 3.5
t_count{adapter=\"sql\"} 2
# HELP z_total What z counts
# TYPE z_total counter
z_total{adapter=\"a,le=\\\"b\"} 3
z_total{adapter=\"sql\"} 1
z_total{adapter=\"wit\"} 2
";
        assert_eq!(ordered(text), expected);
        assert_eq!(ordered(expected), expected);
        assert_eq!(ordered(""), "");
    }
}
