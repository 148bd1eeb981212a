//! Norms of queries and keys of every scope, with what adapters bring, and queries scaled by their position: through the backend,
//! against the reference backend.

use std::sync::Arc;

use ::support::Rng;
use ::support::deltas::{Change, Low, random_low};
use ::support::harness::{Device, Harness, Member, Mixture, Tensor, Weight, bits, oracle, route};
use exlora::adapter::batch::SlotId;
use exlora::backend::{
    AttentionSpec, HeadNorm, HeadNormScope, KvDType, KvShape, NormKind, NormSpec, QueryTemperature, Rope, StepRows,
    Write,
};
use exlora::tensor::DType;

use crate::compute::{assert_ratio, cuda, devices};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const INPUTS: usize = 40;
const SCOPES: [HeadNormScope; 3] = [HeadNormScope::Head, HeadNormScope::HeadOwn, HeadNormScope::All];

/// A projection with an adapter, norms that another adapter replaces, and rows of two sequences.
struct Case {
    head_dim: usize,
    scope: HeadNormScope,
    kind: NormKind,
    q_norm: Tensor,
    k_norm: Tensor,
    /// Of the queries' norm.
    bias: Option<Tensor>,
    /// What the second adapter brings in place of the keys' norm.
    other_k_norm: Tensor,
    temperature: Option<QueryTemperature>,
    members: Vec<Member>,
    low: Low,
    x: Vec<f32>,
}

/// Positions of each sequence.
const SEQUENCES: [std::ops::Range<usize>; 2] = [0..7, 0..4];
const ROWS: usize = 11;

impl Case {
    fn random(seed: u64, head_dim: usize, scope: HeadNormScope) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        let mut norm = |heads: usize| {
            let shape = scope.weight_shape(heads, head_dim);
            Tensor::new(DType::F32, &shape, &rng.normals(shape.iter().product(), 1.0))
        };
        let (q_norm, k_norm, bias, other_k_norm) = (norm(HEADS), norm(KV_HEADS), norm(HEADS), norm(KV_HEADS));
        let widths = [HEADS, KV_HEADS, KV_HEADS].map(|heads| heads * head_dim);
        let mut vector =
            |shape: &[usize], scale: f32| Tensor::new(DType::F16, shape, &rng.normals(shape.iter().product(), scale));
        let members = widths.map(|width| Member {
            weight: Weight::Dense(vector(&[width, INPUTS], (INPUTS as f32).powf(-0.5))),
            bias: Some(vector(&[width], 1.0)),
        });
        Self {
            head_dim,
            scope,
            kind: [NormKind::Rms, NormKind::Layer][seed as usize % 2],
            q_norm,
            k_norm,
            bias: seed.is_multiple_of(3).then_some(bias),
            other_k_norm,
            temperature: (seed % 4 < 2).then_some(QueryTemperature { beta: 0.3, positions: 2.0 }),
            members: members.to_vec(),
            low: random_low(rng, DType::F16, 5, widths[0], INPUTS),
            x: rng.normals(ROWS * INPUTS, 1.0),
        }
    }

    /// What the rows of those sequences attend.
    fn run(&self, device: Device, sequences: std::ops::Range<usize>) -> Vec<f32> {
        let mut harness = Harness::open(device);
        let (group, linears) = harness.group(&self.members);
        let (q, _) = harness.norm_with(&self.q_norm, self.bias.as_ref(), 0.0);
        let (k, k_site) = harness.norm_with(&self.k_norm, None, 0.0);
        let replaced = Change { weight: Some(self.other_k_norm.clone()), ..Change::default() };
        harness.upload(SlotId(0), &linears, &[Change::low(0, self.low.clone())]).expect("the adapter uploads");
        harness.upload(SlotId(1), &[k_site], &[replaced]).expect("the adapter uploads");
        let head_norm = |id| Some(HeadNorm { norm: NormSpec { id, kind: self.kind, eps: 1e-6 }, scope: self.scope });
        let spec = AttentionSpec {
            q_norm: head_norm(q),
            k_norm: head_norm(k),
            rope: Some(Arc::new(Rope::halves(vec![0.5, 0.1, 0.01], 1.0))),
            query_temperature: self.temperature,
            ..AttentionSpec::new(HEADS, KV_HEADS, self.head_dim)
        };
        let (kv_heads, head_dim) = (KV_HEADS, self.head_dim);
        let shape = KvShape { layers: 1, pages: 2, page_tokens: 16, kv_heads, head_dim, dtype: KvDType::F32 };
        let kv = harness.compute().create_kv(shape).expect("the cache fits");
        let mut rows = StepRows::default();
        sequences.clone().for_each(|sequence| rows.push(SEQUENCES[sequence].clone(), [1 - sequence as u32]));
        // Rows of both sequences are of every kind.
        let of_row = |position: &u32| -> Mixture {
            [&[][..], &[(SlotId(0), 1.0)], &[(SlotId(1), 1.0), (SlotId(0), -0.5)]][*position as usize % 3].to_vec()
        };
        let batch = route(&rows.positions.iter().map(of_row).collect::<Vec<_>>());
        let first: usize = SEQUENCES[..sequences.start].iter().map(|positions| positions.len()).sum();
        let x = harness.put(INPUTS, &self.x[first * INPUTS..(first + rows.len()) * INPUTS]);
        let [qkv, out] = [HEADS + 2 * KV_HEADS, HEADS].map(|heads| harness.buffer(heads * self.head_dim, rows.len()));
        let compute = harness.compute();
        compute.linear(group, x, rows.len(), &batch, qkv, Write::Replace).expect("the linear runs");
        compute.attend(&spec, kv, &rows, &batch, qkv, out).expect("the rows attend");
        harness.get(out, HEADS * self.head_dim, rows.len())
    }
}

#[test]
fn norms_of_every_scope_and_scaled_queries_agree_with_the_reference_under_adapters() {
    for (seed, head_dim) in (0..12).zip([8, 24, 64, 128].into_iter().cycle()) {
        let case = Case::random(seed, head_dim, SCOPES[seed as usize / 4]);
        let expected = case.run(oracle(), 0..2);
        for (device, limit) in devices() {
            let what = format!("seed {seed}, {:?}, {:?}, {device:?}", case.scope, case.kind);
            assert_ratio(&what, HEADS * head_dim, &case.run(device, 0..2), &expected, limit);
        }
    }
}

#[test]
fn a_sequence_with_normed_heads_has_the_same_bits_alone() {
    for (seed, scope) in (0..).zip(SCOPES) {
        let case = Case::random(seed, 24, scope);
        let together = case.run(cuda(), 0..2);
        let alone = [case.run(cuda(), 0..1), case.run(cuda(), 1..2)].concat();
        assert_eq!(bits(&alone), bits(&together), "{scope:?}");
    }
}
