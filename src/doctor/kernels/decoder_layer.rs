//! A case of a whole decoder layer, from tokens to logits, in the order of operations that fuses kernels.

use std::sync::Arc;

use super::case::{BaseWeight, Case, Precision, buffers, install, route};
use crate::backend::{
    Activation, AttentionSpec, Backend, HeadSpec, KvDType, KvShape, LogitRows, MlpShape, NormSpec, Rope, StepInputs,
    StepRows, Write,
};

const HIDDEN: usize = 192;
const INTERMEDIATE: usize = 320;
const VOCAB: usize = 100;
const HEADS: usize = 3;
const HEAD_DIM: usize = 64;
/// Width of queries, which is also that of keys and that of values.
const WIDTH: usize = HEADS * HEAD_DIM;
const EPS: f32 = 1e-5;

pub(super) fn cases() -> Vec<Case> {
    vec![decoder_layer()]
}

/// Rows of two prompts, without adapters, with one and with a mixture.
fn decoder_layer() -> Case {
    Case::new("decoder layer, embedding and head", Precision::HalfRepeatedly, |loading| {
        let four_bits = BaseWeight::Codes(4, 64);
        let embedding = loading.table(VOCAB, HIDDEN)?;
        let qkv = loading.group(four_bits, HIDDEN, &[WIDTH; 3])?;
        let output = loading.group(four_bits, WIDTH, &[HIDDEN])?;
        let gate_up = loading.group(four_bits, HIDDEN, &[INTERMEDIATE; 2])?;
        let down = loading.group(four_bits, INTERMEDIATE, &[HIDDEN])?;
        let head = loading.group(BaseWeight::Dense, HIDDEN, &[VOCAB])?;
        let [attention_norm, mlp_norm, final_norm] =
            [loading.norm(HIDDEN)?, loading.norm(HIDDEN)?, loading.norm(HIDDEN)?];
        let places = [(&qkv, 0), (&qkv, 2), (&output, 0), (&gate_up, 1), (&down, 0)];
        let adapters = [8, 16].map(|rank| places.map(|(group, member)| loading.low_rank(group, member, rank)));
        let tokens: Vec<u32> = (0..9).map(|_| loading.rng.below(VOCAB) as u32).collect();
        Ok(Box::new(move |backend: &mut Backend| {
            for (slot, deltas) in (0..).zip(&adapters) {
                install(backend, slot, deltas)?;
            }
            let (compute, count) = (&mut *backend.compute, tokens.len());
            let kv = compute.create_kv(KvShape {
                layers: 1,
                pages: 2,
                page_tokens: 32,
                kv_heads: HEADS,
                head_dim: HEAD_DIM,
                dtype: KvDType::F16,
            })?;
            let mut rows = StepRows::default();
            rows.push(0..5, [1]);
            rows.push(0..4, [0]);
            let mixture = [(0, 0.5), (1, 0.5)];
            let mut of_row: Vec<&[(u32, f32)]> = vec![&[]; 5];
            of_row[1] = &[(0, 1.0)];
            of_row.extend([&mixture[..]; 4]);
            let (batch, picked) = (route(&of_row), [1, 4, 8]);
            let of_picked = route(&picked.map(|row: u32| of_row[row as usize]));
            let [hidden, normed, projected, attended, gates, activated] =
                buffers(compute, count, [HIDDEN, HIDDEN, 3 * WIDTH, WIDTH, 2 * INTERMEDIATE, INTERMEDIATE])?;
            let logit_rows = LogitRows::all(&picked, &of_picked);
            compute.begin_step(&StepInputs {
                tokens: &tokens,
                adapters: &batch,
                kv_groups: std::slice::from_ref(&rows),
                logits: logit_rows,
            })?;
            compute.embed(embedding, &tokens, 1.0, &batch, hidden)?;
            compute.norm(&NormSpec::rms(attention_norm, EPS), hidden, count, &batch, normed, Write::Replace)?;
            compute.linear(qkv.id, normed, count, &batch, projected, Write::Replace)?;
            compute.attend(&attention(), kv, &rows, &batch, projected, attended)?;
            compute.linear(output.id, attended, count, &batch, hidden, Write::ADD)?;
            compute.norm(&NormSpec::rms(mlp_norm, EPS), hidden, count, &batch, normed, Write::Replace)?;
            compute.linear(gate_up.id, normed, count, &batch, gates, Write::Replace)?;
            compute.activate(Activation::Silu, MlpShape::Gated, gates, count, activated)?;
            compute.linear(down.id, activated, count, &batch, hidden, Write::ADD)?;
            compute.norm(&NormSpec::rms(final_norm, EPS), hidden, count, &batch, normed, Write::Replace)?;
            let mut logits = vec![0.0; picked.len() * VOCAB];
            compute.head(&HeadSpec::of(head.id), normed, logit_rows, &mut logits, VOCAB)?;
            compute.drop_kv(kv);
            Ok(logits)
        }))
    })
}

fn attention() -> AttentionSpec {
    let inv_freq = (0..HEAD_DIM / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / HEAD_DIM as f32)).collect();
    let rope = Some(Arc::new(Rope::halves(inv_freq, 1.0)));
    AttentionSpec { scale: (HEAD_DIM as f32).powf(-0.5), rope, ..AttentionSpec::new(HEADS, HEADS, HEAD_DIM) }
}
