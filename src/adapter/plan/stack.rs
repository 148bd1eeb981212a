//! The stack of layers an adapter was trained on: the base's, or one in which `layer_replication` repeats them.
//!
//! ```text
//! layer_replication [[0, 2], [1, 3]]     layer of the file   0  1  2  3
//!                                        layer of the base   0  1  1  2
//!                                        repeat of it        0  0  1  0
//! ```
//!
//! The base's weights are shared; each layer of the file has tensors of its own.

use std::borrow::Cow;
use std::sync::Arc;

use crate::adapter::config::AdapterConfig;
use crate::error::{Error, ErrorCode};
use crate::sites::{LayerList, SiteTable};

/// Most layers of a stack.
pub(super) const MAX_LAYERS: usize = 1024;

/// How many times as deep as the base's it may be.
const MAX_REPEATS: usize = 16;

/// How a file's layers stand for the base's.
#[derive(Debug)]
pub(super) struct Stack {
    /// `model.layers.`.
    prefix: String,
    /// The base's layer of each layer, and the repeat of it; `None` is the base's own stack.
    layers: Option<Vec<(u32, u32)>>,
    /// Its ranges are wrong, which was told: nothing can be said of single layers.
    broken: bool,
}

/// Where a module of the file is in the base.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    /// Under this path, in this repeat of its layer.
    At(Cow<'p, str>, u32),
    /// In a layer that the stack does not have.
    Nowhere,
    /// Unknown, since the stack itself is wrong.
    Untold,
}

impl Stack {
    /// The stack of a config over a model's layers, and what is wrong with it.
    pub fn of(config: &AdapterConfig, sites: &SiteTable) -> (Self, Option<Error>) {
        let prefix = format!("{}.", sites.layers.prefix);
        let (layers, problem) = match layers(&config.layer_replication, &sites.layers) {
            Ok(layers) => (layers, None),
            Err(error) => (None, Some(error)),
        };
        let broken = problem.is_some() || config.is_broken("layer_replication");
        (Self { prefix, layers, broken }, problem)
    }

    /// The base's layer that each layer is; `None` is the base's own stack.
    pub fn base_layers(&self) -> Option<Arc<[u32]>> {
        self.layers.as_ref().map(|layers| layers.iter().map(|(base, _)| *base).collect())
    }

    /// Where a module of the file is.
    pub fn locate<'p>(&self, path: &'p str) -> Place<'p> {
        let Some((layer, rest)) = self.split(path) else { return Place::At(path.into(), 0) };
        match &self.layers {
            _ if self.broken => Place::Untold,
            None => Place::At(path.into(), 0),
            Some(layers) => match layers.get(layer) {
                Some((base, repeat)) => Place::At(format!("{}{base}{rest}", self.prefix).into(), *repeat),
                None => Place::Nowhere,
            },
        }
    }

    /// Every module of the file that a module of the base is, with the repeat; none if the stack itself is wrong.
    pub fn occurrences(&self, path: &str) -> Vec<(String, u32)> {
        let (layer, rest, layers) = match (self.split(path), &self.layers) {
            (Some(_), _) if self.broken => return Vec::new(),
            (Some((layer, rest)), Some(layers)) => (layer, rest, layers),
            _ => return vec![(path.to_owned(), 0)],
        };
        let found = layers.iter().enumerate().filter(|(_, (base, _))| *base as usize == layer);
        found.map(|(index, (_, repeat))| (format!("{}{index}{rest}", self.prefix), *repeat)).collect()
    }

    /// A path's layer and what follows, if it lies in one.
    fn split<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let tail = path.strip_prefix(&self.prefix)?;
        let digits = tail.find('.').unwrap_or(tail.len());
        let layer: usize = tail[..digits].parse().ok()?;
        // `007` and `+7` are no layer's name.
        (layer.to_string() == tail[..digits]).then_some((layer, &tail[digits..]))
    }
}

/// The base's layer and the repeat of each layer of the ranges, or `None` if they are the base's own stack.
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
        return Err(wrong("layer_replication leaves no layer".to_owned()).with_expected("at least one"));
    }
    let mut seen = vec![0; base.count];
    let mut stack = Vec::with_capacity(total);
    for layer in ranges.iter().flat_map(|&(start, end)| start..end) {
        stack.push((layer, seen[layer as usize]));
        seen[layer as usize] += 1;
    }
    let own = stack.len() == base.count && stack.iter().zip(0..).all(|((layer, _), index)| *layer == index);
    Ok((!own).then_some(stack))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(ranges: &[(u32, u32)], count: usize) -> (Stack, Option<Error>) {
        let config = AdapterConfig { layer_replication: ranges.to_vec(), ..AdapterConfig::default() };
        let mut sites = SiteTable::default();
        sites.layers = LayerList { prefix: "model.layers".into(), count };
        Stack::of(&config, &sites)
    }

    #[test]
    fn each_layer_of_the_file_is_a_pass_over_a_layer_of_the_base() {
        let (stack, problem) = stack(&[(0, 2), (1, 3)], 3);
        assert!(problem.is_none());
        assert_eq!(stack.base_layers().as_deref(), Some(&[0, 1, 1, 2][..]));
        let at = |path: &'static str, repeat| Place::At(path.into(), repeat);
        assert_eq!(stack.locate("model.layers.1.mlp.up_proj"), at("model.layers.1.mlp.up_proj", 0));
        assert_eq!(stack.locate("model.layers.2.mlp.up_proj"), at("model.layers.1.mlp.up_proj", 1));
        assert_eq!(stack.locate("model.layers.3.mlp"), at("model.layers.2.mlp", 0));
        assert_eq!(stack.locate("model.layers.4.mlp"), Place::Nowhere);
        assert_eq!(stack.locate("lm_head"), at("lm_head", 0));
        let found = stack.occurrences("model.layers.1.mlp");
        assert_eq!(found, [("model.layers.1.mlp".to_owned(), 0), ("model.layers.2.mlp".to_owned(), 1)]);
    }

    #[test]
    fn the_bases_own_stack_is_no_replication() {
        assert!(stack(&[(0, 1), (1, 3)], 3).0.base_layers().is_none());
        assert!(stack(&[], 3).0.base_layers().is_none());
        assert!(stack(&[(0, 2)], 3).0.base_layers().is_some());
    }

    #[test]
    fn ranges_outside_the_base_and_endless_ones_are_refused() {
        for ranges in [&[(0, 4)][..], &[(2, 1)], &[(1, 1)], &[(0, 3); 17], &[(0, 3), (u32::MAX, u32::MAX)]] {
            let (stack, problem) = stack(ranges, 3);
            assert_eq!(problem.map(|e| e.code()), Some(ErrorCode::AdapterConfigInvalid), "{ranges:?}");
            assert_eq!(stack.locate("model.layers.9.mlp"), Place::Untold);
            assert!(stack.occurrences("model.layers.1.mlp").is_empty());
        }
    }
}
