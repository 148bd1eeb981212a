//! Everything an adapter can change, as a test owns it.

use exlora::adapter::delta::{LowRank, ReplacedRows, SiteDelta};
use exlora::sites::SiteId;
use exlora::tensor::DType;

use super::Rng;
use super::harness::Tensor;

/// What an adapter changes at one of a test's sites.
#[derive(Clone, Default)]
pub struct Change {
    /// Which of the test's sites.
    pub site: usize,
    pub repeat: u32,
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
    pub rows: Option<(Vec<u32>, Tensor)>,
    pub low: Option<Low>,
    /// What is taken out of the weight.
    pub removed: Option<Low>,
}

/// A low-rank part.
#[derive(Clone)]
pub struct Low {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f32,
    pub b_bias: Option<Tensor>,
    pub magnitude: Option<Tensor>,
}

impl Low {
    /// Factors of small numbers.
    pub fn of(a: &[&[f32]], b: &[&[f32]], scale: f32) -> Self {
        let tensor = |rows: &[&[f32]]| Tensor::new(DType::F32, &[rows.len(), rows[0].len()], &rows.concat());
        Self { a: tensor(a), b: tensor(b), scale, b_bias: None, magnitude: None }
    }
}

impl Low {
    fn low_rank(&self) -> LowRank<'_> {
        LowRank {
            b_bias: self.b_bias.as_ref().map(|bias| bias.view().into()),
            magnitude: self.magnitude.as_ref().map(|magnitude| magnitude.view().into()),
            ..LowRank::new(self.a.view(), self.b.view(), self.scale)
        }
    }
}

impl Change {
    /// At a site, in the first pass.
    pub fn low(site: usize, low: Low) -> Self {
        Self { site, low: Some(low), ..Self::default() }
    }

    /// As the backend takes it.
    pub fn delta(&self, sites: &[SiteId]) -> SiteDelta<'_> {
        SiteDelta {
            site: sites[self.site],
            repeat: self.repeat,
            weight: self.weight.as_ref().map(|weight| weight.view().into()),
            bias: self.bias.as_ref().map(|bias| bias.view().into()),
            rows: self
                .rows
                .as_ref()
                .map(|(ids, values)| ReplacedRows { ids: ids.clone(), values: values.view().into() }),
            low_rank: self.low.as_ref().map(Low::low_rank),
            removed: self.removed.as_ref().map(Low::low_rank),
        }
    }
}

/// Random factors in a type, of a rank.
pub fn random_low(rng: &mut Rng, dtype: DType, rank: usize, outputs: usize, inputs: usize) -> Low {
    Low {
        a: Tensor::new(dtype, &[rank, inputs], &rng.normals(rank * inputs, (inputs as f32).powf(-0.5))),
        b: Tensor::new(dtype, &[outputs, rank], &rng.normals(outputs * rank, (rank as f32).powf(-0.5))),
        scale: 0.25 + rng.below(8) as f32 * 0.25,
        b_bias: None,
        magnitude: None,
    }
}
