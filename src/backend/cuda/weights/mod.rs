//! The base's weights on the device: written while a model loads, then shared and immutable.

pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod norm;
mod placer;
mod sizes;

use std::collections::HashMap;
use std::sync::Arc;

use self::embedding::EmbeddingTable;
use self::linear::Linear;
use self::norm::Norm;
pub(crate) use self::placer::Placer;
pub(crate) use self::sizes::WeightSizes;
use super::driver::Device;
use super::layout::ElementType;
use super::tables::GROUP_LINEARS;
use crate::backend::sorted_deltas::{PlacedSite, SitePlace};
use crate::backend::{EmbeddingId, GroupId, LinearSource, NormId, NormSource};
use crate::error::{Error, ErrorCode, Result};
use crate::sites::{SiteId, SitePart};
use crate::tensor::TensorView;

/// Linears that read the same input.
pub(crate) struct Group {
    /// In the order of their outputs.
    pub(crate) linears: Vec<Linear>,
    /// Width of the input.
    pub(crate) in_features: usize,
    /// Outputs of all linears.
    pub(crate) out_features: usize,
}

/// The base's weights.
pub(crate) struct BaseWeights {
    /// The device that holds them.
    pub(crate) device: Arc<Device>,
    /// The type of dense weights and of what linears read.
    pub(crate) element: ElementType,
    /// The groups, by their ids.
    pub(crate) groups: Vec<Group>,
    /// The embedding tables, by their ids.
    pub(crate) tables: Vec<EmbeddingTable>,
    /// The norms, by their ids.
    pub(crate) norms: Vec<Norm>,
    sites: HashMap<SiteId, SitePlace>,
}

impl BaseWeights {
    /// No weights yet.
    pub(crate) fn new(device: Arc<Device>, element: ElementType) -> Self {
        Self { device, element, groups: Vec::new(), tables: Vec::new(), norms: Vec::new(), sites: HashMap::new() }
    }

    /// Packs a group of linears on the device.
    ///
    /// # Errors
    /// `memory_exhausted`; `checkpoint_dtype_unsupported` if a value exceeds the element type; `internal` if the members contradict
    /// themselves or each other; the device failed.
    pub(crate) fn load_linears(&mut self, placer: &mut Placer, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let in_features = members.first().map_or(0, |member| member.weight.in_features());
        if members.is_empty() || members.len() > GROUP_LINEARS {
            return Err(Error::new(ErrorCode::Internal, "a group has one to three linears").with_found(members.len()));
        }
        if let Some(other) = members.iter().find(|member| member.weight.in_features() != in_features) {
            return Err(Error::new(ErrorCode::Internal, "the linears of a group read inputs of different widths")
                .with_expected(in_features)
                .with_found(other.weight.in_features()));
        }
        let mut load = |member: &LinearSource<'_>| Linear::load(placer, self.element, member);
        let linears = members.iter().map(&mut load).collect::<Result<Vec<_>>>()?;
        let group = self.groups.len();
        for (member, source) in members.iter().enumerate() {
            self.sites.insert(source.site, SitePlace::Linear { group, member });
        }
        let out_features = linears.iter().map(Linear::out_features).sum();
        self.groups.push(Group { linears, in_features, out_features });
        Ok(GroupId(group as u32))
    }

    /// Copies an embedding table.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it is no matrix of floats; the device failed.
    pub(crate) fn load_embedding(
        &mut self,
        placer: &mut Placer,
        site: SiteId,
        table: TensorView<'_>,
    ) -> Result<EmbeddingId> {
        let table = EmbeddingTable::load(placer, table)?;
        self.sites.insert(site, SitePlace::Embedding(self.tables.len()));
        self.tables.push(table);
        Ok(EmbeddingId(self.tables.len() as u32 - 1))
    }

    /// Copies a norm.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if it holds no floats; the device failed.
    pub(crate) fn load_norm(&mut self, placer: &mut Placer, source: &NormSource<'_>) -> Result<NormId> {
        let norm = Norm::load(placer, source)?;
        self.sites.insert(source.site, SitePlace::Norm(self.norms.len()));
        self.norms.push(norm);
        Ok(NormId(self.norms.len() as u32 - 1))
    }

    /// Where a site is, if it was loaded.
    pub(crate) fn find(&self, site: SiteId) -> Option<PlacedSite> {
        let place = *self.sites.get(&site)?;
        let (shape, may_grow, takes_bias) = match place {
            SitePlace::Linear { group, member } => {
                let group = &self.groups[group];
                // The outputs of a group's members are contiguous, so none can grow.
                (vec![group.linears[member].out_features(), group.in_features], group.linears.len() == 1, true)
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
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(crate) fn equals(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> Result<bool> {
        if !values.dtype().is_float() {
            return Ok(false);
        }
        match (self.sites.get(&site), part) {
            (Some(&SitePlace::Linear { group, member }), SitePart::Weight) => {
                self.groups[group].linears[member].weight_equals(values)
            }
            (Some(&SitePlace::Linear { group, member }), SitePart::Bias) => {
                Ok(self.groups[group].linears[member].bias_equals(values))
            }
            (Some(&SitePlace::Embedding(table)), SitePart::Weight) => self.tables[table].equals(values),
            (Some(&SitePlace::Norm(norm)), part) => Ok(self.norms[norm].equals(part, &values)),
            _ => Ok(false),
        }
    }

    /// The dequantized weight of a linear, `[out_features, in_features]`: what the kernels multiply.
    ///
    /// # Errors
    /// `internal`: no linear was loaded at the site; `memory_exhausted`; the device failed.
    pub(crate) fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>> {
        let Some(&SitePlace::Linear { group, member }) = self.sites.get(&site) else {
            return Err(Error::new(ErrorCode::Internal, "the backend has no linear at the site"));
        };
        self.groups[group].linears[member].dense()
    }

    /// Number of groups.
    pub(crate) fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Width of the input of a group.
    pub(crate) fn in_features(&self, group: usize) -> usize {
        self.groups[group].in_features
    }

    /// Outputs of a linear of a group, or 0.
    pub(crate) fn out_features(&self, group: usize, member: usize) -> usize {
        self.groups[group].linears.get(member).map_or(0, Linear::out_features)
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        let linears = self.groups.iter().flat_map(|group| &group.linears).map(Linear::bytes);
        let tables = self.tables.iter().map(|table| table.memory.len());
        linears.chain(tables).chain(self.norms.iter().map(|norm| norm.memory.len())).sum()
    }
}
