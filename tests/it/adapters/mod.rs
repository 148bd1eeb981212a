//! Adapter folders, from the files to checked deltas: what is supported, and what is refused under which code.

mod config;
mod embedding_and_head;
mod folder;
mod fused_projections;
mod inspect;
mod layer_replication;
mod lora_variants;
mod peft_support;
mod plain_lora;
mod random_adapters;
mod replaced_weights;
mod tensors;

use exlora::Error;
use exlora::adapter::AdapterFiles;
use exlora::adapter::constraints::AdapterConstraints;
use exlora::adapter::delta::{LowRank, SiteDelta};
use exlora::sites::SiteTable;
use serde_json::Value;
use support::adapters::{Adapter, Folder, sites};

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";
const K_PROJ: &str = "model.layers.0.self_attn.k_proj";
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// A tensor: its shape and values.
type Values = (Vec<usize>, Vec<f32>);

/// What an adapter changes at a site, its tensors as values.
#[derive(Debug, Default, PartialEq)]
struct Change {
    weight: Option<Values>,
    bias: Option<Values>,
    rows: Option<(Vec<u32>, Values)>,
    a: Option<Values>,
    b: Option<Values>,
    scale: Option<f32>,
    b_bias: Option<Values>,
    magnitude: Option<Values>,
}

impl Change {
    fn of(delta: &SiteDelta<'_>) -> Self {
        let values = |tensor: &exlora::tensor::Tensor<'_>| (tensor.shape().to_vec(), tensor.view().to_f32());
        let low = delta.low_rank.as_ref();
        Self {
            weight: delta.weight.as_ref().map(values),
            bias: delta.bias.as_ref().map(values),
            rows: delta.rows.as_ref().map(|rows| (rows.ids.clone(), values(&rows.values))),
            a: low.map(|low| values(&low.a)),
            b: low.map(|low| values(&low.b)),
            scale: low.map(|low| low.scale),
            b_bias: low.and_then(|low| low.b_bias.as_ref()).map(values),
            magnitude: low.and_then(|low| low.magnitude.as_ref()).map(values),
        }
    }
}

/// A checked adapter in a form that tests can compare.
#[derive(Debug)]
struct Planned {
    changes: Vec<(String, u32, Change)>,
    constraints: AdapterConstraints,
    sites: usize,
}

impl Planned {
    /// The change at a site.
    fn at(&self, path: &str) -> &Change {
        self.in_repeat(path, 0)
    }

    /// The change at a site in a repeat of its layer.
    fn in_repeat(&self, path: &str, repeat: u32) -> &Change {
        let found = self.changes.iter().find(|change| change.0 == path && change.1 == repeat);
        &found.unwrap_or_else(|| panic!("no change at {path}, repeat {repeat}: {self:?}")).2
    }

    fn paths(&self) -> Vec<(&str, u32)> {
        self.changes.iter().map(|(path, repeat, _)| (path.as_str(), *repeat)).collect()
    }
}

/// Checks an adapter against a model.
fn plan_on(adapter: &Adapter, sites: &SiteTable) -> Result<Planned, Error> {
    let config = Value::Object(adapter.config.clone()).to_string();
    let files = AdapterFiles::from_bytes(config.as_bytes(), adapter.safetensors(), "sql".as_ref())?;
    let adapter = files.check(sites)?.without_copies(|_, _, _| false);
    let change = |delta: &SiteDelta<'_>| (sites.get(delta.site).path.clone(), delta.repeat, Change::of(delta));
    let changes = adapter.deltas().map(change).collect();
    Ok(Planned { changes, constraints: adapter.summary().constraints.clone(), sites: adapter.summary().sites })
}

/// Checks an adapter that is valid on the tiny model.
fn plan(adapter: &Adapter) -> Planned {
    plan_on(adapter, &sites()).unwrap_or_else(|error| panic!("{error}"))
}

/// All problems of an adapter on a model.
fn refusals_on(adapter: &Adapter, sites: &SiteTable) -> Vec<Error> {
    plan_on(adapter, sites).expect_err("refused").into_list()
}

/// The only problem of an adapter on the tiny model.
fn refused(adapter: &Adapter) -> Error {
    let mut errors = refusals_on(adapter, &sites());
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

/// Values 0, 1, 2, … in a tensor's shape.
fn counting(shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product::<usize>()).map(|i| i as f32).collect()
}

/// Reads a folder and checks it against the tiny model: path, rank and scale of each delta.
fn planned(folder: &Folder) -> Result<Vec<(String, usize, f32)>, Error> {
    let (files, sites) = (AdapterFiles::read(folder.path())?, sites());
    let checked = files.check(&sites)?;
    let rows = checked.deltas().iter().map(|d| {
        let low = low_rank(&d.delta);
        (sites.get(d.delta.site).path.clone(), low.rank(), low.scale)
    });
    Ok(rows.collect())
}

fn low_rank<'d, 'a>(delta: &'d SiteDelta<'a>) -> &'d LowRank<'a> {
    delta.low_rank.as_ref().expect("a low-rank part")
}

fn refusal(folder: &Folder) -> Error {
    planned(folder).expect_err("refused")
}

/// All codes of an error, in its order.
fn codes(error: &Error) -> Vec<&'static str> {
    [error].into_iter().chain(error.others()).map(|e| e.code().as_str()).collect()
}
