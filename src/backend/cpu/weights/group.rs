//! Linears over one input, packed.

use super::pack::{Packed, pack};
use crate::backend::LinearSource;
use crate::backend::cpu::kernels::tile::Tiles;
use crate::backend::cpu::runtime::arena::{Arena, ArenaSlice};
use crate::backend::cpu::runtime::threads::Pool;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::TensorView;

/// Linears over one input, packed.
pub(crate) struct Group {
    pub(crate) members: Vec<Linear>,
    pub(crate) in_features: usize,
    /// All members' outputs.
    pub(crate) out_features: usize,
    /// Distinct input orders of the members.
    pub(crate) orders: Vec<Vec<u32>>,
}

/// One linear of a group.
pub(crate) struct Linear {
    packed: Packed,
    /// Index into the group's orders.
    pub(crate) order: Option<usize>,
    bias: Option<ArenaSlice>,
    /// Where its outputs begin among the group's.
    pub(crate) first_output: usize,
}

impl Linear {
    /// Width of its output.
    pub(crate) fn out_features(&self) -> usize {
        self.packed.out_features
    }

    /// Its weight, for a kernel.
    pub(crate) fn tiles<'a>(&'a self, arena: &'a Arena) -> Tiles<'a> {
        self.packed.view(arena)
    }

    /// Number of tiles.
    pub(crate) fn tile_count(&self) -> usize {
        self.packed.tiles
    }

    /// Its bias, if it has one.
    pub(crate) fn bias<'a>(&self, arena: &'a Arena) -> Option<&'a [f32]> {
        self.bias.map(|bias| arena.values(bias))
    }

    /// Whether it is stored as plain numbers and they are these.
    pub(crate) fn equals(&self, arena: &Arena, values: TensorView<'_>) -> bool {
        self.packed.equals(arena, values)
    }
}

impl Group {
    /// Packs the members.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if the members' inputs differ or one contradicts itself.
    pub(crate) fn pack(pool: &mut Pool, arena: &mut Arena, sources: &[LinearSource<'_>]) -> Result<Self> {
        let in_features = sources.first().map_or(0, |source| source.weight.in_features());
        let mut group = Self { members: Vec::new(), in_features, out_features: 0, orders: Vec::new() };
        for source in sources {
            let mut packed = pack(pool, arena, &source.weight)?;
            if packed.in_features != in_features {
                return Err(Error::new(ErrorCode::Internal, "the linears of a group read inputs of different widths")
                    .with_expected(in_features)
                    .with_found(packed.in_features));
            }
            let order = packed.order.take().map(|order| {
                group.orders.iter().position(|known| *known == order).unwrap_or_else(|| {
                    group.orders.push(order);
                    group.orders.len() - 1
                })
            });
            let bias = match source.bias {
                Some(bias) if bias.len() >= packed.out_features && bias.dtype().is_float() => {
                    let slice = arena.take(packed.out_features * size_of::<f32>())?;
                    bias.read_f32(0..packed.out_features, arena.values_mut(slice));
                    Some(slice)
                }
                Some(bias) => {
                    return Err(Error::new(ErrorCode::Internal, "a bias does not fit its weight")
                        .with_expected(packed.out_features)
                        .with_found(bias.len()));
                }
                None => None,
            };
            let out_features = packed.out_features;
            group.members.push(Linear { packed, order, bias, first_output: group.out_features });
            group.out_features += out_features;
        }
        Ok(group)
    }

    /// The model's input of each packed input of a member, unless they are the same.
    pub(crate) fn order(&self, member: usize) -> Option<&[u32]> {
        self.members[member].order.map(|order| &*self.orders[order])
    }
}
