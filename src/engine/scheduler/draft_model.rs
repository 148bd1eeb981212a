//! A smaller model that drafts tokens for all sequences together, with a KV cache of its own.
//!
//! Its cache follows the tokens of each sequence: what was chosen since it last computed, and the prompt, are computed in the
//! same forward pass as the last token, whose logits are the first draft. Each further draft is a forward pass with one row for
//! each sequence that drafts. Drafts are chosen as the request chooses its tokens, with the random numbers of the same
//! positions: the closer the two models are, the more often the target's choice is the same, sampled or not.
//!
//! Nothing that goes wrong here fails a request: its sequence goes on without drafts.

use std::ops::Range;
use std::sync::Arc;

use super::prefill::{self, Prefill};
use crate::adapter::forward_plan::ForwardPlan;
use crate::engine::draft::{DraftSource, Drafts};
use crate::engine::options::EngineOptions;
use crate::engine::sampler::{Context, Sampler, TopCounts};
use crate::engine::sequence::{Purpose, Sequence};
use crate::engine::sequence_kv::SequenceKv;
use crate::error::{Error, ErrorCode, Result};
use crate::guard::catch_panic;
use crate::kv_cache::PagePool;
use crate::model::batch::{SequenceRows, StepBatch};
use crate::model::{KvStorage, Model};

/// A model that drafts.
pub(in crate::engine) struct DraftModel {
    model: Arc<Model>,
    kv: KvStorage,
    pool: PagePool,
    /// Largest number of tokens that it computes before the drafts of a step, in rows of its base.
    prefill_chunk: usize,
    sampler: Sampler,
    prefills: Vec<Prefill>,
    /// The rows to compute next, those of one forward pass together.
    rows: Vec<DraftRows>,
    batch: StepBatch,
    logits: Vec<f32>,
    /// The tokens of a sequence with its drafts.
    context: Vec<u32>,
}

/// Consecutive tokens of one sequence, from the first that is not computed on.
#[derive(Clone, Copy)]
struct DraftRows {
    /// Index of the sequence.
    index: usize,
    tokens: usize,
}

impl DraftModel {
    /// Takes a model, and creates its cache of `pages` pages.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(in crate::engine) fn new(model: Arc<Model>, pages: usize, options: &EngineOptions) -> Result<Self> {
        Ok(Self {
            kv: model.create_kv(pages, options.kv_dtype)?,
            model,
            pool: PagePool::new(pages, options.prefix_cache)?,
            prefill_chunk: options.prefill_chunk.max(1),
            sampler: Sampler::default(),
            prefills: Vec::new(),
            rows: Vec::new(),
            batch: StepBatch::default(),
            logits: Vec::new(),
            context: Vec::new(),
        })
    }

    /// Forgets every cached prefix.
    pub(super) fn clear_prefixes(&mut self) {
        self.pool.clear_prefixes();
    }

    /// Forgets every sequence.
    pub(super) fn reset(&mut self) {
        self.pool.reset();
        self.sampler = Sampler::default();
    }

    /// Returns the pages of a sequence, which may be computed again later.
    pub(super) fn release(&mut self, drafts: &mut Drafts) {
        if let DraftSource::Model(kv) = &mut drafts.source {
            kv.release(&mut self.pool);
        }
    }

    /// Computes what is missing of the sequences that use it, and proposes up to `limits` tokens for each.
    pub(super) fn propose(&mut self, sequences: &mut [Sequence], limits: &mut [usize]) {
        self.plan_rows(sequences, limits);
        while !self.rows.is_empty() {
            self.compute(sequences, limits);
            self.rows.clear();
            for (index, (sequence, &limit)) in sequences.iter().zip(&*limits).enumerate() {
                if matches!(sequence.drafts.source, DraftSource::Model(_))
                    && (1..limit).contains(&sequence.drafts.proposed.len())
                {
                    self.rows.push(DraftRows { index, tokens: 1 });
                }
            }
        }
    }

    /// Decides which tokens are computed before the first draft: those of sequences that draft in this step, or that are in
    /// prefill. They share a budget as prompts do.
    fn plan_rows(&mut self, sequences: &mut [Sequence], limits: &mut [usize]) {
        self.prefills.clear();
        self.rows.clear();
        for (index, (sequence, limit)) in sequences.iter_mut().zip(limits).enumerate() {
            let is_in_prefill = !sequence.is_decoding();
            let (tokens, DraftSource::Model(kv)) = (&sequence.tokens, &mut sequence.drafts.source) else { continue };
            // The last token is new, and perhaps another one than was drafted.
            kv.go_back(&mut self.pool, tokens, tokens.len() - 1);
            kv.publish(&mut self.pool, tokens);
            kv.choose_rope(&mut self.pool, tokens.len());
            *limit = (*limit).min(self.model.max_seq_len().saturating_sub(tokens.len()));
            let end = if *limit > 0 { tokens.len() } else { tokens.len() - 1 };
            if !(*limit > 0 || is_in_prefill) || end > self.model.max_seq_len() {
                continue;
            }
            if kv.pages.is_empty() {
                kv.find_prefix(&mut self.pool, tokens);
            }
            let vocab = self.model.config().vocab_size;
            if tokens[kv.computed..].iter().any(|&id| id as usize >= vocab) {
                let what = "an adapter has added a token that the draft model does not have";
                self.give_up(sequence, &Error::new(ErrorCode::TokenOutOfRange, what));
                continue;
            }
            if end > kv.computed {
                let (pending, row_cost) = (end - kv.computed, kv.plan.row_cost);
                self.prefills.push(Prefill { index, pending, row_cost });
            }
        }
        let mut tokens = vec![0; sequences.len()];
        prefill::share(self.prefill_chunk, &mut self.prefills, |index, granted| tokens[index] += granted);
        let granted = tokens.into_iter().enumerate().filter(|(_, tokens)| *tokens > 0);
        self.rows.extend(granted.map(|(index, tokens)| DraftRows { index, tokens }));
    }

    /// Computes the planned rows, and proposes a token for each sequence whose last token is among them.
    fn compute(&mut self, sequences: &mut [Sequence], limits: &mut [usize]) {
        let pool = &mut self.pool;
        self.rows.retain(|rows| {
            let drafts = &mut sequences[rows.index].drafts;
            let DraftSource::Model(kv) = &mut drafts.source else { return false };
            let has_pages = kv.allocate(pool, kv.computed + rows.tokens);
            if !has_pages {
                limits[rows.index] = drafts.proposed.len();
            }
            has_pages
        });
        let pass = |rows: &DraftRows| kv_of(&sequences[rows.index]).map(|kv| kv.plan.forward.pass());
        self.rows.sort_by(|a, b| pass(a).cmp(&pass(b)));
        let groups: Vec<usize> = self.rows.chunk_by(|a, b| pass(a) == pass(b)).map(<[_]>::len).collect();
        let mut start = 0;
        for group in groups {
            self.compute_group(sequences, limits, start..start + group);
            start += group;
        }
    }

    /// Computes `rows[range]`, in one forward pass. Those that cannot be computed go on without drafts.
    fn compute_group(&mut self, sequences: &mut [Sequence], limits: &[usize], range: Range<usize>) {
        self.fill_batch(sequences, range.clone());
        let outcome = self.model.forward(&mut self.batch, &[&self.kv], &mut self.logits);
        let Err(error) = outcome else { return self.advance(sequences, limits, range) };
        if range.len() > 1 {
            let middle = range.start + range.len() / 2;
            self.compute_group(sequences, limits, range.start..middle);
            self.compute_group(sequences, limits, middle..range.end);
        } else {
            self.give_up(&mut sequences[self.rows[range.start].index], &error);
        }
    }

    fn fill_batch(&mut self, sequences: &[Sequence], range: Range<usize>) {
        let rows = || {
            let of_sequence = |rows: &DraftRows| {
                let sequence = &sequences[rows.index];
                Some((sequence, kv_of(sequence)?, rows.tokens))
            };
            self.rows[range.clone()].iter().filter_map(of_sequence)
        };
        let Some((_, first, _)) = rows().next() else { return };
        let logit_width = rows().map(|(_, kv, _)| kv.plan.vocab).max().unwrap_or(0);
        let (layer_map, has_long_rope) = first.plan.forward.pass();
        self.batch.begin(layer_map.as_ref(), first.plan.kv_groups, logit_width);
        self.batch.has_long_rope = has_long_rope;
        for (sequence, kv, tokens) in rows() {
            let positions = kv.computed..kv.computed + tokens;
            let logits = usize::from(is_last_row(sequence, positions.end));
            // Either its own tokens or drafted ones, never both.
            let tokens = match kv.computed.checked_sub(sequence.tokens.len()) {
                None => &sequence.tokens[positions.clone()],
                Some(drafted) => &sequence.drafts.proposed[drafted..drafted + tokens],
            };
            let ForwardPlan { spans, embeds, .. } = &kv.plan.forward;
            let rows = SequenceRows { tokens, embeds, position: positions.start, pages: &kv.pages, logits };
            self.batch.push_sequence(rows, spans.over(positions));
        }
        self.batch.finish();
    }

    /// Processes the results of `rows[range]`.
    fn advance(&mut self, sequences: &mut [Sequence], limits: &[usize], range: Range<usize>) {
        let width = self.batch.logit_width();
        let (mut first_row, mut first_logit) = (0, 0);
        for place in range {
            let DraftRows { index, tokens } = self.rows[place];
            let sequence = &mut sequences[index];
            let rows = first_row..first_row + tokens;
            first_row = rows.end;
            let Some(kv) = kv_of_mut(sequence) else { continue };
            kv.computed += tokens;
            let computed = kv.computed;
            let is_last = is_last_row(sequence, computed);
            let logits = first_logit..first_logit + usize::from(is_last) * width;
            first_logit = logits.end;
            let proposes = is_last && sequence.drafts.proposed.len() < limits[index];
            let proposed = self.batch.check_overflows(rows).and_then(|()| match proposes {
                true => self.choose(sequence, logits).map(Some),
                false => Ok(None),
            });
            match proposed {
                Ok(proposed) => sequence.drafts.proposed.extend(proposed),
                Err(error) => self.give_up(sequence, &error),
            }
        }
    }

    /// Chooses a draft as the request chooses its tokens.
    fn choose(&mut self, sequence: &Sequence, logits: Range<usize>) -> Result<u32> {
        let (Purpose::Generate(decode), Some(kv)) = (&sequence.purpose, kv_of(sequence)) else {
            return Err(Error::new(ErrorCode::Internal, "a sequence that generates nothing drafts"));
        };
        self.context.clear();
        self.context.extend(sequence.tokens.iter().chain(&sequence.drafts.proposed));
        // Both models know these ids.
        let vocab = kv.plan.vocab.min(sequence.kv.plan.vocab).min(self.model.config().vocab_size);
        let logits = &self.logits[logits][..vocab];
        let on_panic = |message: &str| Error::new(ErrorCode::Internal, format!("choosing a draft panicked: {message}"));
        let sampler = &mut self.sampler;
        let context = Context { tokens: &self.context, prompt_len: sequence.prompt_len, ..Context::default() };
        // A draft may be wrong, so the sequence's own state learns nothing from it.
        let mut state = decode.sampler_state.clone();
        let sampled = catch_panic(on_panic, || {
            sampler.sample(logits, &decode.sampling, context, &mut state, TopCounts::default())
        });
        sampled.map(|sampled| sampled.id).inspect_err(|_| self.sampler = Sampler::default())
    }

    /// Ends the drafts of a sequence.
    fn give_up(&mut self, sequence: &mut Sequence, error: &Error) {
        tracing::warn!(%error, "a request goes on without drafts");
        self.release(&mut sequence.drafts);
        sequence.drafts.source = DraftSource::Off;
    }
}

/// Whether a sequence's computed tokens then end with its last token or draft.
fn is_last_row(sequence: &Sequence, computed: usize) -> bool {
    computed == sequence.tokens.len() + sequence.drafts.proposed.len()
}

fn kv_of(sequence: &Sequence) -> Option<&SequenceKv> {
    match &sequence.drafts.source {
        DraftSource::Model(kv) => Some(kv),
        _ => None,
    }
}

fn kv_of_mut(sequence: &mut Sequence) -> Option<&mut SequenceKv> {
    match &mut sequence.drafts.source {
        DraftSource::Model(kv) => Some(kv),
        _ => None,
    }
}
