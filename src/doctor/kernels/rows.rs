//! Cases of what works on rows: embedding, norm, gate, logits, and what adapters change there.

use super::case::{BaseWeight, Case, Precision, base_rows, buffers, install, read, route};
use crate::adapter::delta::{LowRank, ReplacedRows, SiteDelta};
use crate::backend::{Activation, Backend, HeadSpec, LogitRows, MlpShape, NormKind, NormSpec, Write};
use crate::tensor::Tensor;

/// Width of a row: several blocks of 256 columns, the last one partly filled.
const WIDTH: usize = 600;
/// Rows of each case.
const ROWS: usize = 9;

pub(super) fn cases() -> Vec<Case> {
    vec![embed(), adapted_embed(), norm(), replaced_norm(), activate(), logits()]
}

/// What only some families have.
pub(super) fn rarer_cases() -> Vec<Case> {
    vec![layer_norm(), plain_activation()]
}

fn embed() -> Case {
    Case::new("embedding", Precision::Single, |loading| {
        let vocab = 50;
        let table = loading.table(vocab, WIDTH)?;
        let tokens: Vec<u32> = (0..ROWS).map(|_| loading.rng.below(vocab) as u32).collect();
        Ok(Box::new(move |backend: &mut Backend| {
            let compute = &mut *backend.compute;
            let [out] = buffers(compute, ROWS, [WIDTH])?;
            compute.embed(table, &tokens, 1.25, &base_rows(ROWS), out)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

/// Every kind of delta of an embedding: a low-rank part, a magnitude (DoRA), trained rows, a larger table.
fn adapted_embed() -> Case {
    Case::new("adapters, embedding", Precision::Half, |loading| {
        let (vocab, added, rank) = (50, 3, 8);
        let table = loading.table(vocab, WIDTH)?;
        let at_table = SiteDelta::at(loading.last_site());
        let lora = loading.factors([WIDTH, vocab], rank, 1.0);
        let magnitude: Vec<f32> = (0..WIDTH).map(|_| 8.0 + loading.rng.uniform(0.5)).collect();
        let magnitude = Some(Tensor::from_f32(&[WIDTH], &magnitude));
        let dora = LowRank { magnitude, ..loading.factors([WIDTH, vocab], 5, 1.0) };
        let mut rows = |rows: usize| Tensor::from_f32(&[rows, WIDTH], &loading.rng.normals(rows * WIDTH, 1.0));
        let (trained, taller) = (ReplacedRows { ids: vec![0, 17, 49], values: rows(3) }, rows(vocab + added));
        let adapters = [
            SiteDelta { low_rank: Some(lora), ..at_table.clone() },
            SiteDelta { low_rank: Some(dora), ..at_table.clone() },
            SiteDelta { rows: Some(trained), ..at_table.clone() },
            SiteDelta { weight: Some(taller), ..at_table },
        ];
        Ok(Box::new(move |backend: &mut Backend| {
            for (slot, delta) in (0..).zip(&adapters) {
                install(backend, slot, std::slice::from_ref(delta))?;
            }
            let compute = &mut *backend.compute;
            let [out] = buffers(compute, ROWS, [WIDTH])?;
            let tokens = [3, 3, 3, 17, 17, 50, 52, 49, 0];
            let batch = route(&[
                &[],
                &[(0, 1.0)],
                &[(1, 0.5)],
                &[(2, 1.0)],
                &[(0, 0.5), (1, 1.0)],
                &[(3, 1.0)],
                &[(3, 1.0)],
                &[(2, 1.0), (0, -0.5)],
                &[(0, 2.0)],
            ]);
            compute.embed(table, &tokens, 1.25, &batch, out)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

fn norm() -> Case {
    Case::new("norm", Precision::Single, |loading| {
        let weight = loading.norm(WIDTH)?;
        let x = loading.rng.normals(ROWS * WIDTH, 2.0);
        Ok(Box::new(move |backend: &mut Backend| {
            let compute = &mut *backend.compute;
            let [input, out] = buffers(compute, ROWS, [WIDTH; 2])?;
            compute.write_rows(input, 0, &x)?;
            compute.norm(&NormSpec::rms(weight, 1e-5), input, ROWS, &base_rows(ROWS), out, Write::Replace)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

/// A layer norm with a bias, and rows whose mean matters.
fn layer_norm() -> Case {
    Case::new("layer norm", Precision::Single, |loading| {
        let id = loading.biased_norm(WIDTH)?;
        let x: Vec<f32> = loading.rng.normals(ROWS * WIDTH, 2.0).into_iter().map(|x| x + 3.0).collect();
        Ok(Box::new(move |backend: &mut Backend| {
            let compute = &mut *backend.compute;
            let [input, out] = buffers(compute, ROWS, [WIDTH; 2])?;
            compute.write_rows(input, 0, &x)?;
            let norm = NormSpec { id, kind: NormKind::Layer, eps: 1e-5 };
            compute.norm(&norm, input, ROWS, &base_rows(ROWS), out, Write::Replace)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

/// The exact GELU of an MLP without gate.
fn plain_activation() -> Case {
    Case::new("activation without gate, exact GELU", Precision::Half, |loading| {
        let x = loading.rng.normals(ROWS * WIDTH, 3.0);
        Ok(Box::new(move |backend: &mut Backend| {
            let compute = &mut *backend.compute;
            let [up, out] = buffers(compute, ROWS, [WIDTH; 2])?;
            compute.write_rows(up, 0, &x)?;
            compute.activate(Activation::Gelu, MlpShape::Plain, up, ROWS, out)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

/// A norm whose weight two adapters replace.
fn replaced_norm() -> Case {
    Case::new("adapters, replaced norm", Precision::Single, |loading| {
        let norm = loading.norm(WIDTH)?;
        let site = loading.last_site();
        let adapters = [(); 2].map(|()| {
            let weight = Some(Tensor::from_f32(&[WIDTH], &loading.rng.normals(WIDTH, 1.0)));
            SiteDelta { weight, ..SiteDelta::at(site) }
        });
        let x = loading.rng.normals(ROWS * WIDTH, 2.0);
        Ok(Box::new(move |backend: &mut Backend| {
            for (slot, delta) in (0..).zip(&adapters) {
                install(backend, slot, std::slice::from_ref(delta))?;
            }
            let compute = &mut *backend.compute;
            let [input, out] = buffers(compute, ROWS, [WIDTH; 2])?;
            compute.write_rows(input, 0, &x)?;
            let (base, first, second): (&[_], &[_], &[_]) = (&[], &[(0, 1.0)], &[(1, 1.0)]);
            let batch = route(&[base, first, second, first, base, base, second, second, first]);
            compute.norm(&NormSpec::rms(norm, 1e-5), input, ROWS, &batch, out, Write::Replace)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

fn activate() -> Case {
    Case::new("activation", Precision::Half, |loading| {
        let x = loading.rng.normals(ROWS * 2 * WIDTH, 3.0);
        Ok(Box::new(move |backend: &mut Backend| {
            let compute = &mut *backend.compute;
            let [gate_up, out] = buffers(compute, ROWS, [2 * WIDTH, WIDTH])?;
            compute.write_rows(gate_up, 0, &x)?;
            compute.activate(Activation::Silu, MlpShape::Gated, gate_up, ROWS, out)?;
            read(compute, out, ROWS, WIDTH)
        }))
    })
}

/// Some rows through a head that adapters change: a low-rank part, replaced rows, more outputs than the base has.
fn logits() -> Case {
    Case::new("logits", Precision::Half, |loading| {
        let (vocab, added) = (333, 3);
        let head = loading.group(BaseWeight::Dense, WIDTH, &[vocab])?;
        let at_head = SiteDelta::at(head.sites[0]);
        let mut rows = |rows: usize| {
            let values = loading.rng.normals(rows * WIDTH, (WIDTH as f32).powf(-0.5));
            Tensor::from_f32(&[rows, WIDTH], &values)
        };
        let (replaced, taller) = (ReplacedRows { ids: vec![0, 17, 332], values: rows(3) }, rows(vocab + added));
        let adapters = [
            loading.low_rank(&head, 0, 8),
            SiteDelta { rows: Some(replaced), ..at_head.clone() },
            SiteDelta { weight: Some(taller), ..at_head },
        ];
        let x = loading.rng.normals(ROWS * WIDTH, 1.0);
        Ok(Box::new(move |backend: &mut Backend| {
            for (slot, delta) in (0..).zip(&adapters) {
                install(backend, slot, std::slice::from_ref(delta))?;
            }
            let (compute, picked, stride) = (&mut *backend.compute, [2, 3, 4, 5, 8], vocab + added);
            let [input] = buffers(compute, ROWS, [WIDTH])?;
            compute.write_rows(input, 0, &x)?;
            let mut logits = vec![0.0; picked.len() * stride];
            let batch = route(&[&[], &[(0, 1.0)], &[(1, 1.0)], &[(2, 1.0)], &[(0, 0.5)]]);
            compute.head(&HeadSpec::of(head.id), input, LogitRows::all(&picked, &batch), &mut logits, stride)?;
            Ok(logits)
        }))
    })
}
