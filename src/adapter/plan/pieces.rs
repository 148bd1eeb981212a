//! What modules of an adapter change of a site, put together: a module is a site, or several sites, or a part of one.
//!
//! ```text
//! qkv_proj on split sites     A for each of q, k, v          B cut by rows
//! q_proj on a fused site      A of the parts stacked         B of the parts on the diagonal, scales folded into it
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use crate::adapter::delta::{LowRank, SiteDelta};
use crate::adapter::features::unsupported;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{AliasPart, Site, SiteId, SiteTable};
use crate::tensor::Tensor;

/// What one module changes of one site.
struct Piece<'a> {
    module: String,
    outputs: Range<usize>,
    delta: SiteDelta<'a>,
}

/// Pieces by site and repeat.
#[derive(Default)]
pub(super) struct Pieces<'a>(BTreeMap<(SiteId, u32), Vec<Piece<'a>>>);

impl<'a> Pieces<'a> {
    /// Adds what a module changes of its parts; `delta` is in the module's own outputs.
    pub fn add(&mut self, module: &str, parts: Vec<AliasPart>, repeat: u32, delta: SiteDelta<'a>) {
        match <[AliasPart; 1]>::try_from(parts) {
            Ok([part]) => self.push(module, part, repeat, delta),
            Err(parts) => {
                for part in parts {
                    let piece = cut(&delta, part.alias_outputs.clone());
                    self.push(module, part, repeat, piece);
                }
            }
        }
    }

    fn push(&mut self, module: &str, part: AliasPart, repeat: u32, delta: SiteDelta<'a>) {
        let delta = SiteDelta { site: part.site, repeat, ..delta };
        let piece = Piece { module: module.to_owned(), outputs: part.site_outputs, delta };
        self.0.entry((part.site, repeat)).or_default().push(piece);
    }

    /// The deltas in the order of site and repeat, and what keeps pieces from becoming one.
    pub fn join(self, sites: &SiteTable) -> (Vec<SiteDelta<'a>>, Vec<Error>) {
        let (mut deltas, mut problems) = (Vec::with_capacity(self.0.len()), Vec::new());
        for ((site, _), pieces) in self.0 {
            match join(pieces, sites.get(site)) {
                Ok(delta) => deltas.extend(delta),
                Err(error) => problems.push(error),
            }
        }
        (deltas, problems)
    }
}

/// The delta of some of a module's outputs.
fn cut<'a>(delta: &SiteDelta<'a>, outputs: Range<usize>) -> SiteDelta<'a> {
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

/// One delta of all pieces at a site; nothing if there are none.
fn join<'a>(mut pieces: Vec<Piece<'a>>, site: &Site) -> Result<Option<SiteDelta<'a>>> {
    pieces.sort_by_key(|piece| piece.outputs.start);
    if let Some(pair) = pieces.windows(2).find(|pair| pair[0].outputs.end > pair[1].outputs.start) {
        let what = format!("'{}' and '{}' are the same outputs of '{}'", pair[0].module, pair[1].module, site.path);
        return Err(Error::new(ErrorCode::AdapterTensorUnexpected, what));
    }
    if let [piece] = &mut pieces[..]
        && piece.outputs == (0..site.out_features)
    {
        return Ok(pieces.pop().map(|piece| piece.delta));
    }
    let Some(first) = pieces.first() else { return Ok(None) };
    let mut delta = SiteDelta { repeat: first.delta.repeat, ..SiteDelta::at(first.delta.site) };
    delta.weight = whole(&pieces, site, "a replaced weight", |delta| delta.weight.as_ref())?;
    delta.bias = whole(&pieces, site, "a replaced bias", |delta| delta.bias.as_ref())?;
    delta.low_rank = stack(&pieces, site)?;
    Ok(Some(delta))
}

/// A tensor that either all parts of the site have, one after the other, or none of them.
fn whole<'a>(
    pieces: &[Piece<'a>],
    site: &Site,
    what: &str,
    part: impl for<'d> Fn(&'d SiteDelta<'a>) -> Option<&'d Tensor<'a>>,
) -> Result<Option<Tensor<'a>>> {
    let parts: Vec<_> = pieces.iter().filter_map(|piece| Some((piece, part(&piece.delta)?))).collect();
    let Some((first, tensor)) = parts.first() else { return Ok(None) };
    let covered: usize = parts.iter().map(|(piece, _)| piece.outputs.len()).sum();
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
    let values: Vec<f32> = parts.iter().flat_map(|(_, tensor)| tensor.view().to_f32()).collect();
    Ok(Some(Tensor::from_f32(&shape, &values)))
}

/// The parts' factors as those of the whole site: A stacked, B on the diagonal with each part's scale in it.
fn stack<'a>(pieces: &[Piece<'a>], site: &Site) -> Result<Option<LowRank<'a>>> {
    let parts: Vec<_> = pieces.iter().filter_map(|piece| Some((piece, piece.delta.low_rank.as_ref()?))).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let rank = parts.iter().map(|(_, low)| low.rank()).sum();
    let (mut a, mut b) = (Vec::with_capacity(rank * site.in_features), vec![0.0; site.out_features * rank]);
    let mut biases = parts.iter().any(|(_, low)| low.b_bias.is_some()).then(|| vec![0.0; site.out_features]);
    for (piece, low) in &parts {
        let start = a.len() / site.in_features;
        a.extend(low.a.view().to_f32());
        for (output, row) in piece.outputs.clone().zip(low.b.view().to_f32().chunks_exact(low.rank())) {
            let to = &mut b[output * rank + start..][..low.rank()];
            to.iter_mut().zip(row).for_each(|(to, value)| *to = low.scale * value);
        }
        if let (Some(biases), Some(bias)) = (&mut biases, &low.b_bias) {
            let to = &mut biases[piece.outputs.clone()];
            to.iter_mut().zip(bias.view().to_f32()).for_each(|(to, value)| *to = low.scale * value);
        }
        if !b.iter().chain(biases.iter().flatten()).all(|value| value.is_finite()) {
            let what = format!("the scale of '{}' takes its B beyond float32", piece.module);
            return Err(Error::new(ErrorCode::AdapterScaleInvalid, what).with_found(low.scale));
        }
    }
    let magnitude = whole(pieces, site, "a magnitude (DoRA)", |delta| delta.low_rank.as_ref()?.magnitude.as_ref())?;
    Ok(Some(LowRank {
        a: Tensor::from_f32(&[rank, site.in_features], &a),
        b: Tensor::from_f32(&[site.out_features, rank], &b),
        scale: 1.0,
        b_bias: biases.map(|biases| Tensor::from_f32(&[site.out_features], &biases)),
        magnitude,
    }))
}
