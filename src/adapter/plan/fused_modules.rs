//! Deltas of modules, turned into deltas of sites: a module may be a site, several sites, or a part of one.
//!
//! ```text
//! qkv_proj on split sites     the same A for q, k, v        B split by rows
//! q_proj on a fused site      A of the parts concatenated   B of the parts block-diagonal, with their scales folded in
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use crate::adapter::delta::{LowRank, SiteDelta};
use crate::adapter::unsupported::unsupported;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{AliasPart, Site, SiteId, SiteTable};
use crate::tensor::{Tensor, zeros};

/// What one module changes of a site: all of its outputs, or some.
struct PartDelta<'a> {
    module: String,
    outputs: Range<usize>,
    delta: SiteDelta<'a>,
}

/// The deltas of all modules, by the site and repeat that they act on.
#[derive(Default)]
pub(super) struct ModuleDeltas<'a>(BTreeMap<(SiteId, u32), Vec<PartDelta<'a>>>);

impl<'a> ModuleDeltas<'a> {
    /// Adds the delta of a module, whose outputs are those of `parts` together.
    pub fn add(&mut self, module: &str, parts: Vec<AliasPart>, repeat: u32, delta: SiteDelta<'a>) {
        match <[AliasPart; 1]>::try_from(parts) {
            Ok([part]) => self.push(module, part, repeat, delta),
            Err(parts) => {
                for part in parts {
                    let rows = delta_of_outputs(&delta, part.alias_outputs.clone());
                    self.push(module, part, repeat, rows);
                }
            }
        }
    }

    fn push(&mut self, module: &str, part: AliasPart, repeat: u32, delta: SiteDelta<'a>) {
        let delta = SiteDelta { site: part.site, repeat, ..delta };
        let site_delta = PartDelta { module: module.to_owned(), outputs: part.site_outputs, delta };
        self.0.entry((part.site, repeat)).or_default().push(site_delta);
    }

    /// One delta per site and repeat, in that order, and the problems of parts that cannot be joined.
    pub fn join(self, sites: &SiteTable) -> (Vec<SiteDelta<'a>>, Vec<Error>) {
        let (mut deltas, mut problems) = (Vec::with_capacity(self.0.len()), Vec::new());
        for ((site, _), parts) in self.0 {
            match join(parts, sites.get(site)) {
                Ok(delta) => deltas.extend(delta),
                Err(error) => problems.push(error),
            }
        }
        (deltas, problems)
    }
}

/// The delta of some of a module's outputs.
fn delta_of_outputs<'a>(delta: &SiteDelta<'a>, outputs: Range<usize>) -> SiteDelta<'a> {
    let rows = |tensor: &Tensor<'a>| tensor.rows(outputs.clone());
    SiteDelta {
        weight: delta.weight.as_ref().map(rows),
        bias: delta.bias.as_ref().map(rows),
        low_rank: delta.low_rank.as_ref().map(|low| LowRank {
            a: low.a.clone(),
            b: rows(&low.b),
            scale: low.scale,
            b_bias: low.b_bias.as_ref().map(rows),
            magnitude: low.magnitude.as_ref().map(rows),
        }),
        repeat: delta.repeat,
        ..SiteDelta::at(delta.site)
    }
}

/// The parts at a site as one delta; `None` if there are no parts.
fn join<'a>(mut parts: Vec<PartDelta<'a>>, site: &Site) -> Result<Option<SiteDelta<'a>>> {
    parts.sort_by_key(|part| part.outputs.start);
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].outputs.end > pair[1].outputs.start) {
        let what =
            format!("'{}' and '{}' both act on the same outputs of '{}'", pair[0].module, pair[1].module, site.path);
        return Err(Error::new(ErrorCode::AdapterTensorUnexpected, what));
    }
    if let [part] = &mut parts[..]
        && part.outputs == (0..site.out_features)
    {
        return Ok(parts.pop().map(|part| part.delta));
    }
    let Some(first) = parts.first() else { return Ok(None) };
    let mut delta = SiteDelta { repeat: first.delta.repeat, ..SiteDelta::at(first.delta.site) };
    delta.weight = concatenated(&parts, site, "a replaced weight", |delta| delta.weight.as_ref())?;
    delta.bias = concatenated(&parts, site, "a replaced bias", |delta| delta.bias.as_ref())?;
    delta.low_rank = block_diagonal(&parts, site)?;
    Ok(Some(delta))
}

/// A tensor of the site that is concatenated from those of its parts. Either all parts have one, or none.
fn concatenated<'a>(
    parts: &[PartDelta<'a>],
    site: &Site,
    what: &str,
    tensor_of: impl for<'d> Fn(&'d SiteDelta<'a>) -> Option<&'d Tensor<'a>>,
) -> Result<Option<Tensor<'a>>> {
    let parts: Vec<_> = parts.iter().filter_map(|part| Some((part, tensor_of(&part.delta)?))).collect();
    let Some((first, tensor)) = parts.first() else { return Ok(None) };
    let covered: usize = parts.iter().map(|(part, _)| part.outputs.len()).sum();
    if covered < site.out_features {
        return Err(unsupported(format!(
            "'{}' has {what}, but other parts of '{}' have none",
            first.module, site.path
        ))
        .with_expected(format!("all {} outputs of it", site.out_features))
        .with_found(format!("{covered} of them")));
    }
    let mut shape = tensor.shape().to_vec();
    shape[0] = covered;
    let mut values = zeros(parts.iter().map(|(_, tensor)| tensor.view().len()).sum())?;
    let mut rest = &mut values[..];
    for (_, tensor) in &parts {
        let (own, others) = rest.split_at_mut(tensor.view().len());
        tensor.view().read_f32(0..own.len(), own);
        rest = others;
    }
    Ok(Some(Tensor::try_from_f32(&shape, &values)?))
}

/// The factors of the whole site: A concatenated, B block-diagonal, with each part's scale folded in.
fn block_diagonal<'a>(all_parts: &[PartDelta<'a>], site: &Site) -> Result<Option<LowRank<'a>>> {
    let parts: Vec<_> = all_parts.iter().filter_map(|part| Some((part, part.delta.low_rank.as_ref()?))).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let rank: usize = parts.iter().map(|(_, low)| low.rank()).sum();
    let mut a = zeros(rank.saturating_mul(site.in_features))?;
    let mut b: Vec<f32> = zeros(rank.saturating_mul(site.out_features))?;
    let has_biases = parts.iter().any(|(_, low)| low.b_bias.is_some());
    let mut biases = has_biases.then(|| zeros::<f32>(site.out_features)).transpose()?;
    let mut start = 0;
    for (part, low) in &parts {
        let own = &mut a[start * site.in_features..(start + low.rank()) * site.in_features];
        low.a.view().read_f32(0..own.len(), own);
        for (output, row) in part.outputs.clone().zip(low.b.view().try_to_f32()?.chunks_exact(low.rank())) {
            let to = &mut b[output * rank + start..][..low.rank()];
            to.iter_mut().zip(row).for_each(|(to, value)| *to = low.scale * value);
        }
        if let (Some(biases), Some(bias)) = (&mut biases, &low.b_bias) {
            let to = &mut biases[part.outputs.clone()];
            to.iter_mut().zip(bias.view().to_f32()).for_each(|(to, value)| *to = low.scale * value);
        }
        if !b.iter().chain(biases.iter().flatten()).all(|value| value.is_finite()) {
            let what = format!("B of '{}' overflows float32 when multiplied by its scale", part.module);
            return Err(Error::new(ErrorCode::AdapterScaleInvalid, what).with_found(low.scale));
        }
        start += low.rank();
    }
    let magnitude =
        concatenated(all_parts, site, "a magnitude (DoRA)", |delta| delta.low_rank.as_ref()?.magnitude.as_ref())?;
    Ok(Some(LowRank {
        a: Tensor::try_from_f32(&[rank, site.in_features], &a)?,
        b: Tensor::try_from_f32(&[site.out_features, rank], &b)?,
        scale: 1.0,
        b_bias: biases.map(|biases| Tensor::from_f32(&[site.out_features], &biases)),
        magnitude,
    }))
}
