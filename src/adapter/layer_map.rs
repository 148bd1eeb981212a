//! The layer map of an adapter: the order in which it runs the base's layers, some of them repeatedly (`layer_replication`).
//!
//! ```text
//! layer_replication [[0, 2], [1, 3]]     layer of the adapter   0  1  2  3
//!                                        base layer             0  1  1  2
//!                                        repeat of it           0  0  1  0
//! ```
//!
//! Repeats share the base's weights; each layer of the adapter has its own tensors. An adapter of a multimodal model has a prefix
//! before the paths of its text model, which only its file and its config know.

use std::borrow::Cow;
use std::sync::Arc;

use crate::adapter::config::AdapterConfig;
use crate::error::{Error, ErrorCode};
use crate::sites::{LayerList, SiteTable};
use crate::text_prefix::TextPrefix;

/// Most layers of a map.
pub(super) const MAX_LAYERS: usize = 1024;

/// Most layers of a map for each layer of the base.
const MAX_REPEATS: usize = 16;

/// Maps the layers of an adapter to the base's.
#[derive(Debug)]
pub(super) struct LayerMap {
    /// `model.layers.`.
    prefix: String,
    /// What the file has before the paths of the text model.
    spelling: TextPrefix,
    /// Base layer and repeat of each layer of the adapter; `None` means the base's own layers.
    layers: Option<Vec<(u32, u32)>>,
    /// Its ranges were refused, so that nothing is known of single layers.
    is_broken: bool,
}

/// Where a module of the adapter is in the base.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Location<'p> {
    /// At this path, in this repeat of its layer.
    At(Cow<'p, str>, u32),
    /// In a layer that the map does not have.
    OutsideMap,
    /// Unknown, because the map itself was refused.
    Unknown,
}

impl LayerMap {
    /// The layer map of a config over a model's layers, for a file with that spelling, and the problem with it.
    pub fn of(config: &AdapterConfig, sites: &SiteTable, spelling: TextPrefix) -> (Self, Option<Error>) {
        let prefix = format!("{}.", sites.layers.prefix);
        let (layers, problem) = match layers(&config.layer_replication, &sites.layers) {
            Ok(layers) => (layers, None),
            Err(error) => (None, Some(error)),
        };
        let is_broken = problem.is_some() || config.is_broken("layer_replication");
        (Self { prefix, spelling, layers, is_broken }, problem)
    }

    /// The base layer of each layer; `None` means the base's own layers.
    pub fn base_layers(&self) -> Option<Arc<[u32]>> {
        self.layers.as_ref().map(|layers| layers.iter().map(|(base, _)| *base).collect())
    }

    /// Where a module of the adapter is in the base.
    pub fn locate<'p>(&self, path: &'p str) -> Location<'p> {
        let path = self.spelling.removed_from(path);
        let Some((layer, rest)) = self.split(&path) else { return Location::At(path, 0) };
        match &self.layers {
            _ if self.is_broken => Location::Unknown,
            None => Location::At(path, 0),
            Some(layers) => match layers.get(layer) {
                Some((base, repeat)) => Location::At(format!("{}{base}{rest}", self.prefix).into(), *repeat),
                None => Location::OutsideMap,
            },
        }
    }

    /// Every module of the adapter that stands for a module of the base, with its repeat; none if the map was refused.
    pub fn occurrences(&self, path: &str) -> Vec<(String, u32)> {
        let (layer, rest, layers) = match (self.split(path), &self.layers) {
            (Some(_), _) if self.is_broken => return Vec::new(),
            (Some((layer, rest)), Some(layers)) => (layer, rest, layers),
            _ => return vec![(self.in_file(path).into_owned(), 0)],
        };
        let found = layers.iter().enumerate().filter(|(_, (base, _))| *base as usize == layer);
        let path = |index: usize| self.in_file(&format!("{}{index}{rest}", self.prefix)).into_owned();
        found.map(|(index, (_, repeat))| (path(index), *repeat)).collect()
    }

    /// The path in the adapter's file of a module of the base that is in no layer.
    pub fn in_file<'p>(&self, path: &'p str) -> Cow<'p, str> {
        self.spelling.added_to(path)
    }

    /// The layer of a path and the rest of the path, if it is inside a layer.
    fn split<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let tail = path.strip_prefix(&self.prefix)?;
        let digits = tail.find('.').unwrap_or(tail.len());
        let layer: usize = tail[..digits].parse().ok()?;
        // `007` and `+7` are not names of layers.
        (layer.to_string() == tail[..digits]).then_some((layer, &tail[digits..]))
    }
}

/// Base layer and repeat of each layer of the ranges, or `None` if they are the base's own layers.
fn layers(ranges: &[(u32, u32)], base: &LayerList) -> Result<Option<Vec<(u32, u32)>>, Error> {
    if ranges.is_empty() {
        return Ok(None);
    }
    let wrong = |what: String| Error::new(ErrorCode::AdapterConfigInvalid, what);
    let limit = MAX_LAYERS.min(MAX_REPEATS * base.count);
    let mut total = 0;
    for &(start, end) in ranges {
        if start > end || end as usize > base.count {
            return Err(wrong("layer_replication has a range outside the base's layers".to_owned())
                .with_expected(format!("0 <= start <= end <= {}", base.count))
                .with_found(format!("[{start}, {end}]")));
        }
        total += (end - start) as usize;
        if total > limit {
            return Err(wrong("layer_replication gives too many layers".to_owned())
                .with_expected(format!("at most {limit}"))
                .with_found(format!("{total} and more")));
        }
    }
    if total == 0 {
        return Err(wrong("layer_replication has no layers".to_owned()).with_expected("at least one"));
    }
    let mut seen = vec![0; base.count];
    let mut map = Vec::with_capacity(total);
    for layer in ranges.iter().flat_map(|&(start, end)| start..end) {
        map.push((layer, seen[layer as usize]));
        seen[layer as usize] += 1;
    }
    let is_base = map.len() == base.count && map.iter().zip(0..).all(|((layer, _), index)| *layer == index);
    Ok((!is_base).then_some(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer_map(ranges: &[(u32, u32)], count: usize) -> (LayerMap, Option<Error>) {
        let config = AdapterConfig { layer_replication: ranges.to_vec(), ..AdapterConfig::default() };
        let mut sites = SiteTable::default();
        sites.layers = LayerList { prefix: "model.layers".into(), count };
        LayerMap::of(&config, &sites, TextPrefix::None)
    }

    #[test]
    fn each_layer_of_the_adapter_is_a_repeat_of_a_base_layer() {
        let (map, problem) = layer_map(&[(0, 2), (1, 3)], 3);
        assert!(problem.is_none());
        assert_eq!(map.base_layers().as_deref(), Some(&[0, 1, 1, 2][..]));
        let at = |path: &'static str, repeat| Location::At(path.into(), repeat);
        assert_eq!(map.locate("model.layers.1.mlp.up_proj"), at("model.layers.1.mlp.up_proj", 0));
        assert_eq!(map.locate("model.layers.2.mlp.up_proj"), at("model.layers.1.mlp.up_proj", 1));
        assert_eq!(map.locate("model.layers.3.mlp"), at("model.layers.2.mlp", 0));
        assert_eq!(map.locate("model.layers.4.mlp"), Location::OutsideMap);
        assert_eq!(map.locate("lm_head"), at("lm_head", 0));
        let found = map.occurrences("model.layers.1.mlp");
        assert_eq!(found, [("model.layers.1.mlp".to_owned(), 0), ("model.layers.2.mlp".to_owned(), 1)]);
    }

    #[test]
    fn a_prefix_is_taken_off_and_put_back() {
        for ranges in [&[][..], &[(0, 1), (0, 2)]] {
            let config = AdapterConfig { layer_replication: ranges.to_vec(), ..AdapterConfig::default() };
            let mut sites = SiteTable::default();
            sites.layers = LayerList { prefix: "model.layers".into(), count: 2 };
            let (map, _) = LayerMap::of(&config, &sites, TextPrefix::Inner);
            let (file, repeat) = map.occurrences("model.layers.0.mlp").pop().expect("one or two");
            assert!(file.starts_with("model.language_model.layers."), "{file}");
            assert_eq!(map.locate(&file), Location::At("model.layers.0.mlp".into(), repeat));
            assert_eq!(map.in_file("model.embed_tokens"), "model.language_model.embed_tokens");
        }
    }

    #[test]
    fn the_bases_own_order_needs_no_map() {
        assert!(layer_map(&[(0, 1), (1, 3)], 3).0.base_layers().is_none());
        assert!(layer_map(&[], 3).0.base_layers().is_none());
        assert!(layer_map(&[(0, 2)], 3).0.base_layers().is_some());
    }

    #[test]
    fn ranges_outside_the_base_and_too_long_ones_are_refused() {
        for ranges in [&[(0, 4)][..], &[(2, 1)], &[(1, 1)], &[(0, 3); 17], &[(0, 3), (u32::MAX, u32::MAX)]] {
            let (map, problem) = layer_map(ranges, 3);
            assert_eq!(problem.map(|e| e.code()), Some(ErrorCode::AdapterConfigInvalid), "{ranges:?}");
            assert_eq!(map.locate("model.layers.9.mlp"), Location::Unknown);
            assert!(map.occurrences("model.layers.1.mlp").is_empty());
        }
    }
}
