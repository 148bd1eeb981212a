//! What becomes of the logits of a step: tokens of one sequence.
//!
//! It runs once for each sequence of the step, several at once (`parallel.rs`), and touches nothing but that one.

use crate::backend::LargestLogit;
use crate::engine::draft::DraftCounts;
use crate::engine::output::no_memory_for_logits;
use crate::engine::post_sampling::PostSampling;
use crate::engine::sampler::{Context, Sampled, Sampler, TopCounts, first_not_finite, guide, largest_logit};
use crate::engine::sequence::{Purpose, Sequence};
use crate::engine::sequence_rows::RowCounts;
use crate::engine::stats::StepStats;
use crate::error::{Error, ErrorCode, Result};
use crate::model::batch::StepBatch;

/// What a step computed for one sequence.
pub(super) struct StepResults<'a> {
    pub batch: &'a StepBatch,
    /// The first row of each prompt's rows, and their number. Those of its drafts follow.
    pub first_rows: RowCounts,
    pub rows: RowCounts,
    /// Of the rows that need them: those after the prompt, then as many after the negative prompt.
    pub logits: &'a mut [f32],
    /// The index of the first of those rows in the batch.
    pub first_logit_row: usize,
}

impl StepResults<'_> {
    /// Checks the rows of the scheduled tokens.
    fn check_rows(&self) -> Result<()> {
        let (first, rows) = (self.first_rows, self.rows);
        self.batch.check_overflows(first.own..first.own + rows.own)?;
        self.batch.check_overflows(first.negative..first.negative + rows.negative)
    }

    /// Checks the rows of the draft with this index.
    fn check_draft(&self, index: usize, has_guidance: bool) -> Result<()> {
        let row = self.first_rows.own + self.rows.own + index;
        self.batch.check_overflows(row..row + 1)?;
        let row = self.first_rows.negative + self.rows.negative + index;
        if has_guidance { self.batch.check_overflows(row..row + 1) } else { Ok(()) }
    }
}

/// Processes what a step computed for one sequence: collects logits, or chooses tokens for as long as the next row is that of
/// the token just chosen.
pub(super) fn accept(
    sampler: &mut Sampler,
    sequence: &mut Sequence,
    mut results: StepResults<'_>,
    stats: &mut StepStats,
) -> Result<()> {
    results.check_rows()?;
    sequence.add_computed(results.rows);
    sequence.report_progress();
    let (width, vocab) = (results.batch.logit_width(), sequence.kv.plan.vocab);
    let logits = std::mem::take(&mut results.logits);
    if let Purpose::PromptLogits(_) = sequence.purpose {
        logits.chunks_exact(width).for_each(|row| sequence.accept_prompt_logits(&row[..vocab]));
        return Ok(());
    }
    if logits.is_empty() {
        return Ok(());
    }
    let (logits, negative) = logits.split_at_mut(logits.len() / sequence.contexts());
    let mut negative = negative.chunks_exact(width).map(|row| &row[..vocab]);
    sequence.drafts.begin_verification();
    for (index, row) in logits.chunks_exact_mut(width).map(|row| &mut row[..vocab]).enumerate() {
        // From the second row on, what was drafted is computed as if it had been chosen in a step of its own.
        if let Some(drafted) = index.checked_sub(1) {
            if sequence.drafts.hits() <= drafted || sequence.job.has_ended() || sequence.has_gone_back() {
                break;
            }
            results.check_draft(drafted, sequence.guidance.is_some())?;
            sequence.add_computed(RowCounts { own: 1, negative: 1 });
        }
        let logit_row = results.first_logit_row + index;
        if results.batch.is_greedy(logit_row) {
            choose_largest(sequence, results.batch.largest_logit(logit_row).or_else(|| largest_logit(row)))?;
        } else {
            choose(sampler, sequence, row, negative.next())?;
        }
        stats.tokens_generated += 1;
    }
    let DraftCounts { accepted, rejected } = sequence.drafts.end_verification();
    stats.accepted_draft_tokens += accepted as u64;
    stats.rejected_draft_tokens += rejected as u64;
    Ok(())
}

/// Fails if a logit is infinite or NaN.
fn check_finite(logits: &[f32]) -> Result<()> {
    first_not_finite(logits).map_or(Ok(()), |id| Err(not_finite(logits[id], id as u32)))
}

fn not_finite(logit: f32, id: u32) -> Error {
    Error::new(ErrorCode::LogitsNotFinite, "the logits are not finite, so that no token can be chosen")
        .with_expected("finite numbers")
        .with_found(format!("{logit} for token {id}"))
}

/// Makes it impossible to choose some tokens.
fn forbid<'a>(logits: &mut [f32], ids: impl IntoIterator<Item = &'a u32>) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Whether a sequence chooses the tokens of the largest logits, whatever came before, and reports nothing else of its logits: then
/// [`choose_largest`] chooses what [`choose`] would.
pub(super) fn is_greedy(sequence: &Sequence) -> bool {
    let Purpose::Generate(decode) = &sequence.purpose else { return false };
    let changes_logits = decode.sampling.changes_logits()
        || sequence.guidance.is_some()
        || decode.constraint.is_some()
        || decode.banned.is_some()
        || sequence.tokens.len() < sequence.prompt_len.saturating_add(decode.min_new_tokens)
        || sequence.job.forbids_some();
    let reads_logits =
        decode.returns_logits || decode.top != TopCounts::default() || !decode.post_sampling_hooks.is_empty();
    decode.sampling.is_greedy() && !changes_logits && !reads_logits
}

/// Chooses the token of the largest logit and sends its chunk. What was forbidden since the step began waits for the next one.
fn choose_largest(sequence: &mut Sequence, largest: Option<LargestLogit>) -> Result<()> {
    let Some(LargestLogit { token, logit }) = largest else {
        return Err(Error::new(ErrorCode::Internal, "a row has no logits"));
    };
    if !logit.is_finite() {
        return Err(not_finite(logit, token));
    }
    sequence.accept(Sampled::of(token), Vec::new())
}

/// Chooses the next token and sends its chunk.
fn choose(sampler: &mut Sampler, sequence: &mut Sequence, logits: &mut [f32], negative: Option<&[f32]>) -> Result<()> {
    let Purpose::Generate(decode) = &mut sequence.purpose else { return Ok(()) };
    check_finite(logits)?;
    if let (Some(guidance), Some(negative)) = (&sequence.guidance, negative) {
        check_finite(negative)?;
        guide(logits, negative, guidance.scale);
        check_finite(logits)?;
    }
    let new_tokens = sequence.tokens.len() - sequence.prompt_len;
    let mut returned = Vec::new();
    if decode.returns_logits {
        returned.try_reserve_exact(logits.len()).map_err(|_| no_memory_for_logits())?;
        returned.extend_from_slice(logits);
    }
    if new_tokens < decode.min_new_tokens {
        forbid(logits, decode.stop_ids.iter().chain(&decode.stop_string_ids));
    }
    forbid(logits, decode.banned.iter().flat_map(|banned| banned.forbidden_at(sequence.tokens.len())));
    forbid(logits, &sequence.job.take_forbidden());
    let mask = decode.constraint.as_mut().map(|constraint| constraint.mask()).transpose()?;
    let (tokens, prompt_len) = (&sequence.tokens, sequence.prompt_len);
    let context = Context { tokens, prompt_len, mask: mask.as_ref(), random: None };
    let mut top = decode.top;
    if !decode.post_sampling_hooks.is_empty() {
        top.probs = top.probs.max(1);
    }
    let mut sampled = sampler.sample(logits, &decode.sampling, context, &mut decode.sampler_state, top)?;
    for hook in &decode.post_sampling_hooks {
        let Sampled { id: token, prob, ref top_probs, .. } = sampled;
        let mut chosen = PostSampling { token, prob, top_probs, logits };
        hook.call(&mut chosen)?;
        if chosen.token != token {
            let replacement = chosen.token;
            sampler.replace(&mut sampled, replacement, logits, top)?;
        }
    }
    sequence.accept(sampled, returned)
}
