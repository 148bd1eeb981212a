//! `exlora inspect`: describes an adapter or model folder, and checks whether it can be used.

use std::path::PathBuf;

use clap::Args;

use super::output::{note, print, print_json};
use crate::error::{Result, printable};
use crate::inspect::{
    AdapterContents, AdapterReport, GroupRun, LinearReport, ModelReport, Quantization, Report, inspect,
};

#[derive(Args)]
pub(super) struct InspectArgs {
    /// An adapter folder or a model folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The base model to check the adapter against.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
}

/// Prints the report; returns whether the folder can be used.
pub(super) fn run(args: &InspectArgs, json: bool) -> Result<bool> {
    let report = inspect(&args.dir, args.base.as_deref())?;
    if json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    let problems = match &report {
        Report::Adapter(adapter) => &adapter.problems[..],
        Report::Model(_) => &[],
    };
    for problem in problems {
        note(&format!("exlora: {problem}"));
    }
    Ok(problems.is_empty())
}

fn text(report: &Report) -> String {
    let lines = match report {
        Report::Adapter(adapter) => adapter_lines(adapter),
        Report::Model(model) => model_lines(model),
    };
    lines.iter().map(|(name, value)| format!("{name:<16} {}\n", printable(value))).collect()
}

type Line = (&'static str, String);

fn adapter_lines(report: &AdapterReport) -> Vec<Line> {
    let mut lines = vec![("adapter", report.path.display().to_string())];
    if let Some(contents) = &report.contents {
        lines.extend(contents_lines(contents));
    }
    let verdict = match (&report.base, report.problems.len()) {
        (Some(base), 0) => format!("fits {}", base.display()),
        (None, 0) => "valid; use --base to check it against a base model".to_owned(),
        (_, 1) => "cannot be used: 1 problem".to_owned(),
        (_, n) => format!("cannot be used: {n} problems"),
    };
    lines.push(("verdict", verdict));
    lines
}

fn contents_lines(contents: &AdapterContents) -> Vec<Line> {
    let alpha = contents.alpha.map_or("unknown".to_owned(), |alpha| alpha.to_string());
    let kind = if contents.use_rslora { "LoRA, rank-stabilized" } else { "LoRA" };
    let mut lines = vec![
        ("kind", kind.to_owned()),
        ("config", format!("r {}, alpha {alpha}", contents.rank)),
        ("targets", contents.target_modules.join(" ")),
    ];
    if !contents.features.is_empty() {
        lines.push(("features", contents.features.join(", ")));
    }
    lines.push(("sites", contents.sites.to_string()));
    for group in &contents.groups {
        let what = format!("rank {}, alpha {}, scale {}: {} sites", group.rank, group.alpha, group.scale, group.sites);
        lines.push(("", what));
    }
    let ends = [("embedding", contents.embedding_rows), ("head", contents.head_rows)];
    let ends: Vec<String> =
        ends.into_iter().filter_map(|(end, rows)| Some(format!("{end} of {} rows", rows?))).collect();
    if !ends.is_empty() {
        lines.push(("vocabulary", ends.join(", ")));
    }
    lines.push(("stored", format!("{} as {}", size(contents.bytes as u64), contents.dtypes.join(", "))));
    if contents.ignored_tensors > 0 {
        lines.push(("left out", format!("{} tensors of other modalities than text", contents.ignored_tensors)));
    }
    lines.push(("content", contents.content_hash.clone()));
    lines
}

fn model_lines(model: &ModelReport) -> Vec<Line> {
    let quantization = match &model.quantization {
        None => "none".to_owned(),
        Some(Quantization::Gptq { bits, group_size, desc_act, sym }) => {
            let group = group_size.map_or("whole columns".to_owned(), |size| format!("groups of {size}"));
            let zeros = if *sym { "symmetric" } else { "asymmetric" };
            let order = if *desc_act { ", act-order" } else { "" };
            format!("gptq {bits} bits, {group}, {zeros}{order}")
        }
        Some(Quantization::Exl2 { widths, group_sizes }) => {
            format!("exl2 {} bits, groups of {}", join(widths, ", "), join(group_sizes, ", "))
        }
    };
    let head = model.head_bits_per_weight.map_or(String::new(), |bits| format!(", {bits} in lm_head"));
    let dtypes = model.dtypes.join(", ");
    let window = model.window.map_or(String::new(), |window| format!(", window {window}"));
    let yes_no = |is_there: bool| if is_there { "yes" } else { "no" };
    let mut lines = vec![
        ("model", model.path.display().to_string()),
        ("architecture", model.architecture.clone()),
        ("parameters", format!("{:.1} M", model.parameters as f64 / 1e6)),
        ("quantization", quantization),
        ("bits per weight", format!("{} in all linears{head}; otherwise {dtypes}", model.bits_per_weight)),
        ("files", size(model.file_bytes)),
        ("layers", format!("{}, {} sites", model.layers, model.sites)),
        (
            "widths",
            format!("hidden {}, mlp {}, vocabulary {}", model.hidden_size, model.intermediate_size, model.vocab_size),
        ),
        ("heads", format!("{} of width {}, {} for keys and values", model.heads, model.head_dim, model.kv_heads)),
        (
            "context",
            format!("{} tokens{window}, {} bytes of f16 cache each", model.max_positions, model.kv_bytes_per_token),
        ),
        ("tokenizer", yes_no(model.has_tokenizer).to_owned()),
        (
            "chat template",
            match &model.chat_template_error {
                Some(error) => format!("refused: {error}"),
                None => yes_no(model.has_chat_template).to_owned(),
            },
        ),
    ];
    if model.quantization.is_some() {
        lines.extend(layout_lines(&model.linears));
    }
    lines
}

/// The linears grouped by how they are stored; `--json` lists each by its path.
fn layout_lines(linears: &[LinearReport]) -> Vec<Line> {
    let mut rows: Vec<(String, String, Vec<&str>)> = Vec::new();
    for linear in linears {
        let (groups, bits) = (groups_text(&linear.groups), format!("{:.3}", linear.bits_per_weight));
        match rows.iter_mut().find(|row| row.0 == groups && row.1 == bits) {
            Some((_, _, paths)) => paths.push(&linear.path),
            None => rows.push((groups, bits, vec![&linear.path])),
        }
    }
    let heading = "bits:inputs x groups".to_owned();
    let width = rows.iter().map(|row| row.0.len()).fold(heading.len(), usize::max);
    let lines = rows.iter().map(|(groups, bits, paths)| {
        let linears = match paths[..] {
            [path] => path.to_owned(),
            _ => format!("{} linears", paths.len()),
        };
        ("", format!("{groups:<width$}  {bits:>6}  {linears}"))
    });
    std::iter::once(("stored as", format!("{heading:<width$}  bits per weight"))).chain(lines).collect()
}

/// `8:32x2 4:128`: two groups of 32 inputs in 8 bits, then one group of 128 in 4 bits.
fn groups_text(groups: &[GroupRun]) -> String {
    let text = |run: &GroupRun| match run.count {
        1 => format!("{}:{}", run.bits, run.inputs),
        count => format!("{}:{}x{count}", run.bits, run.inputs),
    };
    match groups {
        [] => "not quantized".to_owned(),
        _ => join(&groups.iter().map(text).collect::<Vec<_>>(), " "),
    }
}

fn join<T: ToString>(values: &[T], separator: &str) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
