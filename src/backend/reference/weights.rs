//! The base's weights, dequantized, and preparing adapters against them.

use std::collections::HashMap;

use super::delta::{Adapter, BaseWeight, Delta, Norms};
use super::matrix::{Matrix, matrix, unknown};
use crate::adapter::delta::SiteDelta;
use crate::backend::packed_norm::PackedNorm;
use crate::backend::sorted_deltas::SitePlace;
use crate::backend::{
    AdapterPreparer, EmbeddingId, GroupId, LinearSource, NormId, NormSource, PrepareError, PreparedAdapter,
    WeightLoader,
};
use crate::error::Result;
use crate::quant::StoredWeight;
use crate::sites::{SiteId, SitePart};
use crate::tensor::{TensorView, zeros};

/// A linear of a group.
pub(super) struct Linear {
    pub(super) site: SiteId,
    pub(super) weight: Matrix,
    /// Whether it was stored as floats.
    is_dense: bool,
    pub(super) bias: Option<Vec<f32>>,
}

/// A norm's packed values.
pub(super) struct Norm {
    pub(super) site: SiteId,
    form: PackedNorm,
    pub(super) packed: Vec<f32>,
}

/// The base's dequantized weights.
#[derive(Default)]
pub(super) struct BaseWeights {
    pub(super) groups: Vec<Vec<Linear>>,
    pub(super) tables: Vec<(SiteId, Matrix)>,
    pub(super) norms: Vec<Norm>,
    sites: HashMap<SiteId, SitePlace>,
}

impl Norm {
    /// Channels that it has weights for.
    pub(super) fn width(&self) -> usize {
        self.form.width()
    }

    /// What an adapter makes of it.
    fn replaced(&self, delta: &SiteDelta<'_>) -> Result<Delta> {
        let mut packed = vec![0.0; self.packed.len()];
        self.form.replace(&self.packed, delta, &mut packed)?;
        Ok(Delta { norm: Some(packed), ..Delta::default() })
    }
}

impl BaseWeights {
    /// Resident bytes.
    pub(super) fn bytes(&self) -> usize {
        let linear = |linear: &Linear| linear.weight.bytes() + linear.bias.as_ref().map_or(0, |b| size_of_val(&**b));
        let tables = self.tables.iter().map(|(_, table)| table.bytes());
        let norms = self.norms.iter().map(|norm| size_of_val(&*norm.packed));
        self.groups.iter().flatten().map(linear).sum::<usize>() + tables.chain(norms).sum::<usize>()
    }

    /// The base's weight at a site.
    fn base_weight(&self, site: SiteId) -> Result<BaseWeight<'_>> {
        match self.sites.get(&site) {
            Some(&SitePlace::Linear { group, member }) => {
                Ok(BaseWeight { values: &self.groups[group][member].weight, is_table: false })
            }
            Some(&SitePlace::Embedding(table)) => Ok(BaseWeight { values: &self.tables[table].1, is_table: true }),
            _ => Err(unknown()),
        }
    }

    /// Checks that no DoRA norm of a delta is 0 at a request weight of 1.
    fn check_norms(&self, norms: &Norms, (site, repeat): (SiteId, u32), delta: &Delta) -> Result<(), PrepareError> {
        if delta.low_rank.is_none() {
            return Ok(());
        }
        let norms = norms.of((site, repeat), delta, self.base_weight(site)?, 1.0);
        match norms.iter().flat_map(|norms| norms.iter()).position(|norm| *norm == 0.0 || norm.is_nan()) {
            Some(output) => Err(PrepareError::ZeroNorm { site, output }),
            None => Ok(()),
        }
    }
}

impl AdapterPreparer for BaseWeights {
    fn equals_base(&self, site: SiteId, part: SitePart, values: TensorView<'_>) -> bool {
        let held: Option<&[f32]> = match (self.sites.get(&site), part) {
            (Some(&SitePlace::Linear { group, member }), SitePart::Weight) => {
                Some(&self.groups[group][member]).filter(|linear| linear.is_dense).map(|linear| &*linear.weight.values)
            }
            (Some(&SitePlace::Linear { group, member }), SitePart::Bias) => self.groups[group][member].bias.as_deref(),
            (Some(&SitePlace::Embedding(table)), SitePart::Weight) => Some(&self.tables[table].1.values),
            (Some(&SitePlace::Norm(norm)), part) => {
                let Norm { form, packed, .. } = &self.norms[norm];
                return form.equals(packed, part, &values);
            }
            _ => None,
        };
        values.dtype().is_float() && held.is_some_and(|held| held == values.to_f32())
    }

    fn dense_weight(&self, site: SiteId) -> Result<Vec<f32>> {
        match self.base_weight(site)? {
            BaseWeight { values: Matrix { values, .. }, is_table: false } => {
                let mut copy = zeros(values.len())?;
                copy.copy_from_slice(values);
                Ok(copy)
            }
            BaseWeight { is_table: true, .. } => Err(unknown()),
        }
    }

    fn prepare(
        &self,
        deltas: &[SiteDelta<'_>],
        between_parts: &mut dyn FnMut() -> Result<()>,
    ) -> Result<PreparedAdapter, PrepareError> {
        let mut adapter = Adapter::default();
        for delta in deltas {
            let changed = match self.sites.get(&delta.site) {
                Some(&SitePlace::Norm(norm)) => self.norms[norm].replaced(delta)?,
                Some(_) => Delta::new(delta)?,
                None => return Err(unknown().into()),
            };
            if adapter.deltas.insert((delta.site, delta.repeat), changed).is_some() {
                return Err(unknown().into());
            }
        }
        for (&key, delta) in &adapter.deltas {
            between_parts()?;
            self.check_norms(&adapter.norms, key, delta)?;
        }
        Ok(PreparedAdapter::new(adapter.bytes(), adapter))
    }
}

impl WeightLoader for BaseWeights {
    fn load_linears(&mut self, members: &[LinearSource<'_>]) -> Result<GroupId> {
        let group = self.groups.len();
        let linear = |source: &LinearSource<'_>| {
            let mut bias = source.bias.as_ref().map(TensorView::try_to_f32).transpose()?;
            if let Some(bias) = &mut bias {
                bias.truncate(source.weight.out_features());
            }
            Ok(Linear {
                site: source.site,
                weight: Matrix { width: source.weight.in_features(), values: source.weight.try_dequantize()? },
                is_dense: matches!(source.weight, StoredWeight::Dense(_)),
                bias,
            })
        };
        let linears = members.iter().map(linear).collect::<Result<_>>()?;
        let places = members.iter().enumerate();
        self.sites.extend(places.map(|(member, source)| (source.site, SitePlace::Linear { group, member })));
        self.groups.push(linears);
        Ok(GroupId(group as u32))
    }

    fn load_embedding(&mut self, site: SiteId, table: TensorView<'_>) -> Result<EmbeddingId> {
        let table = matrix(&table)?;
        self.sites.insert(site, SitePlace::Embedding(self.tables.len()));
        self.tables.push((site, table));
        Ok(EmbeddingId(self.tables.len() as u32 - 1))
    }

    fn load_norm(&mut self, source: &NormSource<'_>) -> Result<NormId> {
        let form = PackedNorm::of(source)?;
        let mut packed = vec![0.0; form.len()];
        form.pack(source, &mut packed);
        self.sites.insert(source.site, SitePlace::Norm(self.norms.len()));
        self.norms.push(Norm { site: source.site, form, packed });
        Ok(NormId(self.norms.len() as u32 - 1))
    }
}
