//! The base's weights, packed: written while a model loads, then shared and immutable.

pub(crate) mod dequantize;
pub(crate) mod embedding;
pub(crate) mod group;
pub(crate) mod pack;

use std::collections::HashMap;

use self::dequantize::dequantize;
use self::embedding::{EmbeddingTable, TableStore};
use self::group::Group;
use super::kernels::dispatch::Kernels;
use super::runtime::arena::{Arena, ArenaSlice};
use super::runtime::threads::Pool;
use crate::backend::packed_norm::PackedNorm;
use crate::backend::sorted_deltas::{PlacedSite, SitePlace};
use crate::backend::{ActivationDType, EmbeddingId, GroupId, LinearSource, NormId, NormSource};
use crate::checkpoint::TensorOnDisk;
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SitePart};
use crate::tensor::{TensorView, shape_text};

/// A norm, whose packed values are in the arena.
pub(crate) struct Norm {
    /// The form of the values.
    pub(crate) form: PackedNorm,
    values: ArenaSlice,
}

/// The base's weights, and the kernels that read them.
pub(crate) struct BaseWeights {
    pub(crate) kernels: &'static Kernels,
    activations: ActivationDType,
    pub(crate) arena: Arena,
    pub(crate) groups: Vec<Group>,
    pub(crate) tables: Vec<EmbeddingTable>,
    pub(crate) norms: Vec<Norm>,
    pub(crate) sites: HashMap<SiteId, SitePlace>,
}

impl BaseWeights {
    /// No weights yet.
    pub(crate) fn new(kernels: &'static Kernels, activations: ActivationDType) -> Self {
        Self {
            kernels,
            activations,
            arena: Arena::default(),
            groups: Vec::new(),
            tables: Vec::new(),
            norms: Vec::new(),
            sites: HashMap::new(),
        }
    }

    /// Packs a group of linears, with all threads.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if the members contradict themselves or each other.
    pub(crate) fn load_linears(&mut self, pool: &mut Pool, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let packed = Group::pack(pool, self.kernels, self.activations, &mut self.arena, members)?;
        let group = self.groups.len();
        for (member, source) in members.iter().enumerate() {
            self.sites.insert(source.site, SitePlace::Linear { group, member });
        }
        self.groups.push(packed);
        Ok(GroupId(group as u32))
    }

    /// Copies an embedding table, in the type it is stored in.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it is no matrix of floats.
    pub(crate) fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        let store = self.arena.take(table.bytes().len())?;
        self.arena.values_mut::<u8>(store).copy_from_slice(table.bytes());
        self.add_table(site, table, TableStore::Memory(store))
    }

    /// Takes an embedding table whose rows are read from its file.
    ///
    /// # Errors
    /// `internal` if it is no matrix of floats.
    pub(crate) fn load_embedding_on_disk(
        &mut self,
        site: SiteId,
        table: TensorView<'_>,
        on_disk: TensorOnDisk,
    ) -> Result<EmbeddingId> {
        self.add_table(site, table, TableStore::Disk(on_disk))
    }

    fn add_table(&mut self, site: SiteId, table: TensorView<'_>, store: TableStore) -> Result<EmbeddingId> {
        let (&[vocab, hidden], true) = (table.shape(), table.dtype().is_float()) else {
            return Err(Error::new(ErrorCode::Internal, "an embedding table must be a matrix of floats")
                .with_found(format!("{} {}", table.dtype(), shape_text(table.shape()))));
        };
        self.sites.insert(site, SitePlace::Embedding(self.tables.len()));
        self.tables.push(EmbeddingTable { dtype: table.dtype(), vocab, hidden, store });
        Ok(EmbeddingId(self.tables.len() as u32 - 1))
    }

    /// Packs a norm.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it holds no floats.
    pub(crate) fn load_norm(&mut self, source: &NormSource<'_>) -> Result<NormId> {
        let form = PackedNorm::of(source)?;
        let values = self.arena.take(form.len() * size_of::<f32>())?;
        form.pack(source, self.arena.values_mut(values));
        self.sites.insert(source.site, SitePlace::Norm(self.norms.len()));
        self.norms.push(Norm { form, values });
        Ok(NormId(self.norms.len() as u32 - 1))
    }

    /// A norm's form and packed values.
    pub(crate) fn norm(&self, norm: usize) -> Option<(&PackedNorm, &[f32])> {
        self.norms.get(norm).map(|norm| (&norm.form, self.arena.values(norm.values)))
    }

    /// Where a site is, if it was loaded.
    pub(crate) fn find(&self, site: SiteId) -> Option<PlacedSite> {
        let place = *self.sites.get(&site)?;
        let (shape, may_grow, takes_bias) = match place {
            SitePlace::Linear { group, member } => {
                let group = &self.groups[group];
                // The outputs of a group's members are contiguous, so none can grow.
                (vec![group.members[member].out_features(), group.in_features], group.members.len() == 1, true)
            }
            SitePlace::Embedding(table) => (vec![self.tables[table].vocab, self.tables[table].hidden], true, false),
            SitePlace::Norm(norm) => {
                let form = &self.norms[norm].form;
                (form.shape().to_vec(), false, form.has_bias())
            }
        };
        Some(PlacedSite { place, shape, may_grow, takes_bias })
    }

    /// Whether a weight or bias is stored as plain floats and holds exactly these.
    pub(crate) fn equals(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
        if !values.dtype().is_float() {
            return false;
        }
        let (arena, same) = (&self.arena, |held: &[f32]| values.shape() == [held.len()] && values.to_f32() == held);
        match (self.sites.get(&site), part) {
            (Some(&SitePlace::Linear { group, member }), SitePart::Weight) => {
                self.groups[group].members[member].equals(arena, values)
            }
            (Some(&SitePlace::Linear { group, member }), SitePart::Bias) => {
                self.groups[group].members[member].bias(arena).is_some_and(same)
            }
            (Some(&SitePlace::Embedding(table)), SitePart::Weight) => self.tables[table].equals(arena, values),
            (Some(&SitePlace::Norm(norm)), part) => {
                let Norm { form, values: held } = &self.norms[norm];
                form.equals(arena.values(*held), part, &values)
            }
            _ => false,
        }
    }

    /// The dequantized weight of a linear, `[out_features, in_features]`.
    ///
    /// # Errors
    /// `internal`: no linear was loaded at the site, or a task panicked.
    pub(crate) fn dequantize(&self, pool: &mut Pool, site: SiteId) -> Result<Vec<f32>> {
        let Some(&SitePlace::Linear { group, member }) = self.sites.get(&site) else {
            return Err(Error::new(ErrorCode::Internal, "the backend has no linear at the site"));
        };
        let group = &self.groups[group];
        let (linear, order) = (&group.members[member], group.order(member));
        let (tiles, outputs) = (linear.tiles(&self.arena), linear.out_features());
        dequantize(pool, self.kernels, &tiles, order, outputs, group.in_features)
    }
}
