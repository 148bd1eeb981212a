//! Adapters in their slots: factors re-laid for shrink and expand.
//!
//! The A's of all sites that read the same input are stacked and packed like any dense weight, lanes = ranks, so that
//! shrink `t = A x` is the product of a few more tiles in one pass over x. B stands by tiles of 16 outputs,
//! `[tile][rank][16]`, so that expand happens on a tile's outputs before they are written. Factors keep the type they
//! are stored in; a site or group without a delta has no bytes and costs nothing.

use std::collections::HashMap;

use super::arena::{LINE, Region};
use super::isa::LANES;
use super::pack::{dense_spans, interleave, tile_bytes};
use super::tile::{Span, Tiles, Width};
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::SiteId;
use crate::tensor::shape_text;

/// Where a site is, and its shape.
#[derive(Clone, Copy)]
pub(super) struct SitePlace {
    pub(super) group: usize,
    pub(super) member: usize,
    pub(super) in_features: usize,
    pub(super) out_features: usize,
}

/// An adapter in a slot.
pub(super) struct Adapter {
    region: Region,
    groups: Vec<Option<Factors>>,
}

/// What an adapter adds at the sites of one group.
pub(super) struct Factors {
    spans: Vec<Span>,
    a_start: usize,
    a_tile_bytes: usize,
    /// Tiles of 16 stacked ranks.
    pub(super) a_tiles: usize,
    members: Vec<Option<Member>>,
}

/// What an adapter adds at one site.
pub(super) struct Member {
    /// First of its ranks among the stacked ones.
    pub(super) first_rank: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) width: Width,
    b_start: usize,
    b_tile_bytes: usize,
}

impl Factors {
    /// What is added at a member of the group.
    pub(super) fn member(&self, index: usize) -> Option<&Member> {
        self.members.get(index)?.as_ref()
    }

    /// Stacked ranks, whole tiles: the length of t.
    pub(super) fn t_len(&self) -> usize {
        self.a_tiles * LANES
    }
}

/// A delta and its place in the adapter's region.
struct Planned<'a> {
    factors: &'a LowRank<'a>,
    place: SitePlace,
}

impl Adapter {
    /// Re-lays an adapter's factors.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if a delta does not fit its site, or a site stands twice.
    pub(super) fn new(deltas: &[SiteDelta<'_>], sites: &HashMap<SiteId, SitePlace>, groups: usize) -> Result<Self> {
        let mut planned: Vec<Vec<Planned<'_>>> = (0..groups).map(|_| Vec::new()).collect();
        for delta in deltas {
            let planned_delta = plan(delta, sites)?;
            planned[planned_delta.place.group].push(planned_delta);
        }
        let mut bytes = 0;
        let mut laid = Vec::with_capacity(groups);
        for group in &mut planned {
            group.sort_by_key(|p| p.place.member);
            if group.windows(2).any(|pair| pair[0].place.member == pair[1].place.member) {
                return Err(Error::new(ErrorCode::Internal, "an adapter has two deltas for one site"));
            }
            laid.push(lay_out(group, &mut bytes));
        }
        let mut region = Region::new(bytes)?;
        let out = region.values_mut::<u8>();
        for (group, factors) in planned.iter().zip(&laid) {
            if let Some(factors) = factors {
                factors.fill(group, out);
            }
        }
        Ok(Self { region, groups: laid })
    }

    /// Bytes it occupies.
    pub(super) fn bytes(&self) -> usize {
        self.region.len()
    }

    /// What it adds at the sites of a group.
    pub(super) fn factors(&self, group: usize) -> Option<&Factors> {
        self.groups.get(group)?.as_ref()
    }

    /// The stacked A's of a group, for a kernel.
    pub(super) fn a<'a>(&'a self, factors: &'a Factors) -> Tiles<'a> {
        Tiles {
            codes: &self.region.values()[factors.a_start..][..factors.a_tiles * factors.a_tile_bytes],
            scales: &[],
            spans: &factors.spans,
            tile_bytes: factors.a_tile_bytes,
            scale_bytes: 0,
            wide: false,
        }
    }

    /// One tile of a site's B, `[rank][16]`.
    pub(super) fn b_tile(&self, member: &Member, tile: usize) -> &[u8] {
        &self.region.values()[member.b_start + tile * member.b_tile_bytes..][..member.b_tile_bytes]
    }
}

/// Finds the delta's site and checks that the factors fit it.
fn plan<'a>(delta: &'a SiteDelta<'a>, sites: &HashMap<SiteId, SitePlace>) -> Result<Planned<'a>> {
    let Some(factors) = &delta.low_rank else {
        return Err(Error::new(ErrorCode::Internal, "a delta adds nothing"));
    };
    let Some(&place) = sites.get(&delta.site) else {
        return Err(Error::new(ErrorCode::Internal, "an adapter's site was never packed")
            .found(format!("site {}", delta.site.0)));
    };
    let (a, b) = (&factors.a, &factors.b);
    let floats = Width::of_dtype(a.dtype()).is_some() && Width::of_dtype(b.dtype()).is_some();
    match (a.shape(), b.shape()) {
        (&[rank, inputs], &[outputs, columns])
            if rank == columns && inputs == place.in_features && outputs == place.out_features && floats =>
        {
            Ok(Planned { factors, place })
        }
        _ => Err(Error::new(ErrorCode::Internal, "the factors of a delta do not fit its site")
            .expected(format!("[{}, {}]", place.out_features, place.in_features))
            .found(format!("B {} A {}", shape_text(b.shape()), shape_text(a.shape())))),
    }
}

/// Decides where a group's factors stand in the region, of which `bytes` are taken.
fn lay_out(group: &[Planned<'_>], bytes: &mut usize) -> Option<Factors> {
    let in_features = group.first()?.place.in_features;
    let mut take = |size: usize| {
        let start = *bytes;
        *bytes += size.next_multiple_of(LINE);
        start
    };
    // A stack of one type keeps it; a mixed one is widened.
    let mut widths = group.iter().filter_map(|p| Width::of_dtype(p.factors.a.dtype()));
    let first = widths.next().unwrap_or(Width::F32);
    let spans = dense_spans(in_features, if widths.all(|w| w == first) { first } else { Width::F32 });
    let a_tile_bytes = tile_bytes(&spans);
    let a_tiles = group.iter().map(|p| p.factors.rank()).sum::<usize>().div_ceil(LANES);
    let a_start = take(a_tiles * a_tile_bytes);

    let mut members: Vec<Option<Member>> = Vec::new();
    let mut first_rank = 0;
    for Planned { factors, place } in group {
        let (rank, width) = (factors.rank(), Width::of_dtype(factors.b.dtype()).unwrap_or(Width::F32));
        let b_tile_bytes = rank * LANES * width.bits() / 8;
        let b_start = take(place.out_features.div_ceil(LANES) * b_tile_bytes);
        members.resize_with(place.member + 1, || None);
        members[place.member] = Some(Member { first_rank, rank, scale: factors.scale, width, b_start, b_tile_bytes });
        first_rank += rank;
    }
    Some(Factors { spans, a_start, a_tile_bytes, a_tiles, members })
}

impl Factors {
    /// Writes the group's factors to their places.
    fn fill(&self, group: &[Planned<'_>], out: &mut [u8]) {
        let rows: Vec<_> =
            group.iter().flat_map(|p| (0..p.factors.rank()).map(|row| (p.factors.a.view(), row))).collect();
        let a_width = self.spans.first().map_or(Width::F32, |span| span.width);
        for tile in 0..self.a_tiles {
            let out = &mut out[self.a_start + tile * self.a_tile_bytes..][..self.a_tile_bytes];
            interleave(out, a_width, |lane| rows.get(tile * LANES + lane).copied());
        }
        for Planned { factors, place } in group {
            let Some(member) = self.member(place.member) else { continue };
            for tile in 0..place.out_features.div_ceil(LANES) {
                let out = &mut out[member.b_start + tile * member.b_tile_bytes..][..member.b_tile_bytes];
                let row = |lane| Some(tile * LANES + lane).filter(|&row| row < place.out_features);
                interleave(out, member.width, |lane| Some((factors.b.view(), row(lane)?)));
            }
        }
    }
}
