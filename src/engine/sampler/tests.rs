use super::*;
use proptest::prelude::*;

/// Samples without a state before it.
fn sample(
    sampler: &mut Sampler,
    logits: &[f32],
    params: &SamplingParams,
    tokens: &[u32],
    prompt_len: usize,
    mask: Option<&TokenMask>,
    logprobs: usize,
) -> Result<Sampled> {
    let mut state = SamplerState::new(params, logits.len(), None);
    let context = Context { tokens, prompt_len, mask, random: None };
    sampler.sample(logits, params, context, &mut state, TopCounts { logprobs, probs: 0 })
}

/// Penalties and biases.
fn penalize(sampler: &mut Sampler, logits: &mut [f32], params: &SamplingParams, tokens: &[u32], prompt_len: usize) {
    sampler.penalties.apply(logits, params, tokens, prompt_len);
    penalties::bias(logits, params);
}

fn at(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..Default::default() }
}

fn choose(logits: &[f32], params: &SamplingParams) -> u32 {
    sample(&mut Sampler::default(), logits, params, &[], 0, None, 0).expect("a token can be chosen").id
}

/// How often each token is drawn over `n` positions.
fn histogram(logits: &[f32], params: &SamplingParams, n: usize) -> Vec<usize> {
    let mut sampler = Sampler::default();
    let tokens = vec![0; n];
    let mut counts = vec![0; logits.len()];
    for position in 0..n {
        let sampled = sample(&mut sampler, logits, params, &tokens[..position], position, None, 0);
        counts[sampled.expect("a token can be chosen").id as usize] += 1;
    }
    counts
}

/// The distribution by definition: softmax over the kept tokens, with whole-vocabulary sorts.
fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut ids: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
    ids.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN").then(a.cmp(&b)));
    if params.top_k > 0 {
        ids.truncate(params.top_k);
    }
    let best = f64::from(logits[ids[0]]);
    let weight = |&i: &usize| ((f64::from(logits[i]) - best) / f64::from(params.temperature)).exp();
    let total: f64 = ids.iter().map(weight).sum();
    let mut kept = Vec::new();
    let mut sum = 0.0;
    for &i in &ids {
        let in_nucleus = params.top_p == 0.0 || params.top_p == 1.0 || sum < total * f64::from(params.top_p);
        sum += weight(&i);
        if in_nucleus && weight(&i) >= f64::from(params.min_p) {
            kept.push(i);
        }
    }
    let total: f64 = kept.iter().map(weight).sum();
    let mut out = vec![0.0; logits.len()];
    for i in kept {
        out[i] = weight(&i) / total;
    }
    out
}

/// Pearson's statistic stays under its mean by five of its deviations; no forbidden token is drawn.
fn fits(counts: &[usize], expected: &[f64]) -> bool {
    let n: usize = counts.iter().sum();
    let mut statistic = 0.0;
    let mut freedom = -1.0f64;
    for (&count, &p) in counts.iter().zip(expected) {
        if p == 0.0 {
            if count > 0 {
                return false;
            }
            continue;
        }
        let mean = p * n as f64;
        statistic += (count as f64 - mean).powi(2) / mean;
        freedom += 1.0;
    }
    statistic <= freedom + 5.0 * f64::sqrt(2.0 * freedom.max(0.0)) + 1e-9
}

#[test]
fn greedy_takes_the_largest_logit_and_the_lowest_id_of_equals() {
    let mut logits = vec![0.0; 100];
    logits[70] = 2.0;
    logits[33] = 2.0;
    assert_eq!(choose(&logits, &at(0.0)), 33);
    assert_eq!(choose(&logits, &SamplingParams { top_k: 1, ..at(1.0) }), 33);
}

#[test]
fn nan_and_minus_infinity_are_never_chosen() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for params in [at(0.0), at(1.0), SamplingParams { top_k: 2, top_p: 0.9, min_p: 0.1, ..at(0.7) }] {
        assert_eq!(choose(&[nan, -inf, -5.0, nan], &params), 2);
        for all_forbidden in [&[nan, -inf, nan][..], &[]] {
            let error =
                sample(&mut Sampler::default(), all_forbidden, &params, &[], 0, None, 0).expect_err("none is possible");
            assert_eq!(error.code(), ErrorCode::SamplingInvalid);
        }
        assert_eq!(choose(&[1.0, inf, nan], &params), 1);
    }
    let sampled = sample(&mut Sampler::default(), &[nan, 1.0, -inf], &at(0.0), &[], 0, None, 3).expect("chosen");
    assert_eq!((sampled.id, sampled.logprob, sampled.top_logprobs), (1, 0.0, vec![(1, 0.0)]));
}

#[test]
fn only_ids_in_the_mask_are_chosen_and_logprobs_stay_those_of_all() {
    let logits = [3.0, 2.0, 1.0, 0.0];
    let mut mask = TokenMask::none(3);
    [1, 2].iter().for_each(|&id| mask.allow(id));
    for params in [at(0.0), at(1.0), SamplingParams { top_k: 1, ..at(1.0) }] {
        let mut chosen = [0; 4];
        for position in 0..200 {
            let tokens = vec![0; position];
            let sampled =
                sample(&mut Sampler::default(), &logits, &params, &tokens, 0, Some(&mask), 2).expect("chosen");
            let free = sample(&mut Sampler::default(), &logits, &params, &tokens, 0, None, 2).expect("chosen");
            assert_eq!(sampled.top_logprobs, free.top_logprobs);
            chosen[sampled.id as usize] += 1;
        }
        assert_eq!((chosen[0], chosen[3], chosen[2] > 0), (0, 0, !params.is_greedy()));
    }
    let none = TokenMask::none(4);
    let error =
        sample(&mut Sampler::default(), &logits, &at(0.0), &[], 0, Some(&none), 0).expect_err("none is allowed");
    assert_eq!(error.code(), ErrorCode::SamplingInvalid);
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, 2.0, -1.0, 0.5, 0.5];
    for temperature in [0.5, 1.0, 2.0] {
        let params = at(temperature);
        assert!(fits(&histogram(&logits, &params, 20_000), &distribution(&logits, &params)));
    }
    assert!(!fits(&histogram(&logits, &at(1.0), 20_000), &distribution(&logits, &at(1.1))), "the test can fail");
}

#[test]
fn a_draw_does_not_depend_on_earlier_samples() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
    let params = SamplingParams { seed: Some(7), ..at(1.0) };
    let fresh = sample(&mut Sampler::default(), &logits, &params, &[1, 2, 3], 1, None, 0).expect("chosen");
    let mut used = Sampler::default();
    let _ = sample(&mut used, &[1.0; 90], &SamplingParams { repetition_penalty: 2.0, ..at(0.3) }, &[5, 80], 0, None, 4);
    assert_eq!(sample(&mut used, &logits, &params, &[9, 9, 9], 2, None, 0).expect("chosen"), fresh);
}

#[test]
fn seeds_draw_independently() {
    let logits = [0.0; 16];
    let draws = |seed| {
        let params = SamplingParams { seed: Some(seed), ..at(1.0) };
        let mut sampler = Sampler::default();
        (0..256)
            .map(|n| sample(&mut sampler, &logits, &params, &vec![0; n], 0, None, 0).expect("chosen").id)
            .collect::<Vec<_>>()
    };
    let first = draws(0);
    // A seed that differs by the increment of SplitMix64 would shift a stream that is not mixed twice.
    for seed in [1, 2, 1 << 40, 0x9E37_79B9_7F4A_7C15] {
        let other = draws(seed);
        for shift in 0..3 {
            let equal = first.iter().skip(shift).zip(&other).filter(|(a, b)| a == b).count();
            assert!(equal < 40, "seed {seed} agrees in {equal} of 256 places at shift {shift}");
        }
    }
}

/// The first output of the generator for seed 0 is widely published: 0xE220A8397B1DCDAF.
#[test]
fn the_mixer_is_splitmix64() {
    let first = hash_of_state(0x9E37_79B9_7F4A_7C15);
    assert_eq!(first, 0xE220_A839_7B1D_CDAF);
    assert_eq!(hash(0, 0), hash_of_state(first.wrapping_add(0x9E37_79B9_7F4A_7C15)));
}

fn hash_of_state(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[test]
fn penalties_follow_their_formulas() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        logit_bias: vec![(3, 1.0), (4, f32::NEG_INFINITY)],
        ..at(0.0)
    };
    let mut sampler = Sampler::default();
    let mut logits = [4.0, -4.0, 1.0, 0.0, 9.0, 3.0];
    // 0 in the prompt; 1 twice and 2 once in the output; 99 is not a token of the model.
    let tokens = [0, 99, 1, 2, 1];
    penalize(&mut sampler, &mut logits, &params, &tokens, 2);
    assert_eq!(logits, [2.0, -9.25, -0.25, 1.0, f32::NEG_INFINITY, 3.0]);
    assert!(sampler.penalties.is_clean());

    let mut logits = [4.0, -4.0, 1.0];
    let params = SamplingParams { repetition_penalty: 2.0, repetition_range: Some(2), ..at(0.0) };
    penalize(&mut sampler, &mut logits, &params, &[0, 1, 2, 1], 4);
    assert_eq!(logits, [4.0, -8.0, 0.5], "only the last two tokens count");
}

#[test]
fn logprobs_are_of_the_unmodified_distribution() {
    let logits = [1.0f32, 3.0, 2.0, -1.0];
    let params = SamplingParams { logit_bias: vec![(0, 100.0)], ..at(0.5) };
    let sampled = sample(&mut Sampler::default(), &logits, &params, &[], 0, None, 2).expect("chosen");
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let expected = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
    assert_eq!(sampled.id, 0);
    assert!((sampled.logprob - expected(0)).abs() < 1e-6);
    assert_eq!(sampled.top_logprobs.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 2]);
    assert!(sampled.top_logprobs.iter().all(|&(id, logprob)| (logprob - expected(id as usize)).abs() < 1e-6));
}

proptest! {
    #[test]
    fn every_filter_matches_its_definition(
        logits in prop::collection::vec(-40i32..40, 1..600),
        temperature in 0.2f32..3.0,
        top_k in 0usize..20,
        top_p in prop::sample::select(vec![0.0f32, 0.3, 0.8, 0.95, 1.0]),
        min_p in prop::sample::select(vec![0.0f32, 0.05, 0.5, 1.0]),
    ) {
        prop_assume!(top_k != 1);
        let logits: Vec<f32> = logits.into_iter().map(|l| l as f32 / 8.0).collect();
        let params = SamplingParams { top_k, top_p, min_p, ..at(temperature) };
        let mut sampler = Sampler::default();
        assert!(sampler.distribute(&logits, &params, None, &[]));
        let mut found = vec![0.0; logits.len()];
        for (&id, weight) in sampler.candidates.ids.iter().zip(&sampler.candidates.weights) {
            found[id as usize] = weight / sampler.candidates.total;
        }
        for (id, (found, expected)) in found.iter().zip(distribution(&logits, &params)).enumerate() {
            prop_assert!((found - expected).abs() < 1e-9, "token {}: {} instead of {}", id, found, expected);
        }
    }

    #[test]
    fn argmax_equals_a_plain_scan(logits in prop::collection::vec(
        prop_oneof![8 => -4i8..4, 1 => Just(100i8), 1 => Just(101i8)], 0..70)) {
        let logits: Vec<f32> = logits
            .into_iter()
            .map(|l| match l { 100 => f32::NAN, 101 => f32::NEG_INFINITY, l => f32::from(l) })
            .collect();
        let mut best = (None, f32::NEG_INFINITY);
        for (id, &logit) in logits.iter().enumerate() {
            if logit > best.1 {
                best = (Some(id as u32), logit);
            }
        }
        prop_assert_eq!(argmax(&logits), best.0);
    }

    #[test]
    fn the_largest_logit_is_that_of_a_plain_scan_or_the_first_that_is_not_finite(logits in prop::collection::vec(
        prop_oneof![40 => -40i8..4, 1 => 100i8..103], 0..300)) {
        let not_finite = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY];
        let logits: Vec<f32> =
            logits.into_iter().map(|l| if l < 100 { f32::from(l) } else { not_finite[l as usize - 100] }).collect();
        let mut expected: Option<(u32, f32)> = None;
        for (id, &logit) in (0..).zip(&logits) {
            if !logit.is_finite() {
                expected = Some((id, logit));
                break;
            }
            if expected.is_none_or(|(_, best)| logit > best) {
                expected = Some((id, logit));
            }
        }
        let found = largest_logit(&logits).map(|largest| (largest.token, largest.logit.to_bits()));
        prop_assert_eq!(found, expected.map(|(id, logit)| (id, logit.to_bits())));
        // What a request that looks at its logits would choose.
        if let Some((id, logit)) = expected && logit.is_finite() {
            prop_assert_eq!(choose(&logits, &at(0.0)), id);
        }
    }
}

/// Any settings, also useless ones, over the whole range that they may have.
fn any_params() -> impl Strategy<Value = SamplingParams> {
    fn number(usual: std::ops::Range<f32>, extreme: &'static [f32]) -> impl Strategy<Value = f32> {
        prop_oneof![3 => usual, 1 => prop::sample::select(extreme)]
    }
    let share = || number(0.01..0.99, &[0.0, 1.0, 1e-38, 0.999_999_9]);
    let filters = (share(), share(), share(), share(), share(), prop::sample::select(vec![0_usize, 0, 2, 7, 1 << 40]));
    let temperatures = (
        number(0.2..2.0, &[1e-45, 1e-3, 1e38]),
        number(0.1..2.0, &[0.0, 0.0, 1e-38, 1e38]),
        number(0.0..1.0, &[0.0]),
        number(0.0..3.0, &[0.0, f32::MAX]),
        number(0.0..3.0, &[0.0, 1e30]),
        any::<bool>(),
    );
    let rest = (
        (any::<bool>(), number(0.0..10.0, &[0.0, 1e30]), number(-2.0..2.0, &[0.0, -1e30, 1e30])),
        (share(), share()),
        (number(0.0..3.0, &[0.0, f32::MAX]), number(0.5..3.0, &[1e-30, 1e38])),
        number(0.5..2.0, &[1.0, 1e-38, f32::MAX]),
        number(-2.0..2.0, &[0.0, f32::MAX]),
        any::<u64>(),
    );
    (filters, temperatures, rest).prop_map(|(filters, temperatures, rest)| {
        let (top_p, top_a, min_p, tfs, typical, top_k) = filters;
        let (temperature, smoothing_factor, min_temp, max_temp, temp_exponent, temperature_last) = temperatures;
        let (mirostat, xtc, dry, repetition_penalty, presence_penalty, seed) = rest;
        SamplingParams {
            top_k,
            top_p,
            top_a,
            min_p,
            tfs,
            typical,
            temperature,
            smoothing_factor,
            min_temp,
            max_temp,
            temp_exponent,
            temperature_last,
            mirostat: mirostat.0,
            mirostat_tau: mirostat.1,
            mirostat_mu: Some(mirostat.2),
            skew: mirostat.2,
            xtc_probability: xtc.0,
            xtc_threshold: xtc.1,
            dry_multiplier: dry.0,
            dry_base: dry.1,
            repetition_penalty,
            presence_penalty,
            seed: Some(seed),
            ..SamplingParams::default()
        }
    })
}

fn any_logits(extreme: bool) -> impl Strategy<Value = Vec<f32>> {
    let usual = (-400i32..400).prop_map(|logit| logit as f32 / 16.0);
    let odd = prop::sample::select(vec![f32::NAN, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-40, -0.0]);
    prop::collection::vec(prop_oneof![12 => usual, u32::from(extreme) => odd], 1..700)
}

proptest! {
    #[test]
    fn any_settings_give_a_distribution_and_a_token_of_it(
        logits in any_logits(true),
        params in any_params(),
        tokens in prop::collection::vec(0u32..9, 0..30),
    ) {
        prop_assert!(params.check(logits.len()).is_ok(), "{:?}", params.check(logits.len()));
        let mut sampler = Sampler::default();
        let mut state = SamplerState::new(&params, logits.len(), None);
        let context = Context { tokens: &tokens, ..Context::default() };
        let Ok(probs) = sampler.distribution(&logits, &params, context, &state) else {
            prop_assert!(logits.iter().all(|logit| logit.is_nan() || *logit == f32::NEG_INFINITY));
            return Ok(());
        };
        prop_assert!(probs.iter().all(|prob| (0.0..=1.0).contains(prob)), "{:?}", params);
        let sum: f64 = probs.iter().map(|&prob| f64::from(prob)).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5, "{} with {:?}", sum, params);
        let top = TopCounts { logprobs: 3, probs: logits.len() };
        let sampled = sampler.sample(&logits, &params, context, &mut state, top);
        let sampled = sampled.expect("there is a distribution");
        prop_assert_eq!(sampled.prob, probs[sampled.id as usize]);
        prop_assert!(sampled.prob > 0.0 && logits[sampled.id as usize] > f32::NEG_INFINITY);
        prop_assert!(sampled.top_probs.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        prop_assert!(sampled.top_probs.iter().all(|&(id, prob)| prob == probs[id as usize]));
        let possible = logits.iter().filter(|&&logit| logit > f32::NEG_INFINITY).count();
        prop_assert!(sampled.top_probs.len() <= possible);
        prop_assert!(!sampled.logprob.is_nan() && state.mirostat_mu().is_none_or(f64::is_finite));
        // Nothing is left behind that the next token would see.
        let again = sampler.sample(&logits, &params, context, &mut SamplerState::new(&params, logits.len(), None), top);
        prop_assert_eq!(again.expect("chosen"), sampled);
    }

    #[test]
    fn probabilities_do_not_depend_on_ids(logits in any_logits(false), params in any_params(), turn in 0usize..700) {
        // Ties are broken by id, so there are none here, and no temperature makes any.
        let params = SamplingParams {
            temperature: params.temperature.clamp(0.1, 10.0),
            smoothing_factor: if params.smoothing_factor < 0.01 { 0.0 } else { params.smoothing_factor.min(10.0) },
            ..params
        };
        let logits: Vec<f32> = logits.iter().enumerate().map(|(id, logit)| logit + id as f32 * 1e-4).collect();
        let mut different = logits.clone();
        different.sort_by(f32::total_cmp);
        prop_assume!(different.windows(2).all(|pair| pair[0] < pair[1]));
        let mut turned = logits.clone();
        turned.rotate_left(turn % logits.len());
        let state = SamplerState::new(&params, logits.len(), None);
        let probs = |logits: &[f32]| Sampler::default().distribution(logits, &params, Context::default(), &state);
        let mut expected = probs(&logits).expect("a distribution");
        expected.rotate_left(turn % logits.len());
        for (found, expected) in probs(&turned).expect("a distribution").into_iter().zip(expected) {
            prop_assert!((found - expected).abs() < 1e-6, "{} instead of {} with {:?}", found, expected, params);
        }
    }

    #[test]
    fn a_draw_is_where_the_sum_exceeds_the_random_number(
        logits in any_logits(false),
        params in any_params(),
        random in 0.0f64..1.0,
    ) {
        let params = SamplingParams { skew: 0.0, mirostat: false, ..params };
        let mut sampler = Sampler::default();
        let mut state = SamplerState::new(&params, logits.len(), None);
        let context = Context { random: Some(random), ..Context::default() };
        let sampled = sampler.sample(&logits, &params, context, &mut state, TopCounts { logprobs: 0, probs: 1 });
        let id = sampled.expect("chosen").id as usize;
        let probs = sampler.distribution(&logits, &params, context, &state).expect("a distribution");
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if params.top_k > 0 || (params.top_p > 0.0 && params.top_p < 1.0) {
            order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN").then(a.cmp(&b)));
        }
        let place = order.iter().position(|&other| other == id).expect("it is in the order");
        let before: f64 = order[..place].iter().map(|&id| f64::from(probs[id])).sum();
        let after = before + f64::from(probs[id]);
        prop_assert!(before - 1e-4 <= random && random <= after + 1e-4, "{} in {}..{}", random, before, after);
    }
}

/// Settings that leave a vocabulary as large as a model's in place, and such that cut nearly all of it.
#[test]
fn large_vocabularies_are_cut_like_small_ones() {
    let mut state = 1_u64;
    let mut normal = || -> f32 {
        (0..12)
            .map(|_| {
                state = hash(state, 0);
                unit(state) as f32
            })
            .sum::<f32>()
            - 6.0
    };
    for scale in [0.3, 1.0, 6.0] {
        let logits: Vec<f32> = (0..40_000).map(|_| (normal() * scale * 64.0).round() / 64.0).collect();
        for (top_k, top_p, min_p) in [(0, 0.95, 0.0), (0, 0.2, 0.0), (0, 1.0, 0.1), (50, 0.9, 0.0), (20_000, 0.9, 0.01)]
        {
            let params = SamplingParams { top_k, top_p, min_p, ..at(0.8) };
            let state = SamplerState::default();
            let found = Sampler::default().distribution(&logits, &params, Context::default(), &state).expect("probs");
            for (id, (found, expected)) in found.iter().zip(distribution(&logits, &params)).enumerate() {
                assert!((f64::from(*found) - expected).abs() < 1e-7, "token {id}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn an_old_repetition_is_penalized_less_with_decay() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        repetition_range: Some(1),
        repetition_decay: 2,
        frequency_penalty: 1.0,
        presence_penalty: 10.0,
        penalize_prompt: true,
        ..at(0.0)
    };
    // The last token has the whole penalty, and so has the one before it; then half, then nothing.
    let mut logits = [8.0, 8.0, 8.0, 8.0];
    penalize(&mut Sampler::default(), &mut logits, &params, &[3, 0, 1, 2], 4);
    assert_eq!(logits, [8.0 / 1.5 - 0.5 - 5.0, 4.0 - 11.0, 4.0 - 11.0, 8.0]);
    let mut logits = [8.0, 8.0];
    penalize(&mut Sampler::default(), &mut logits, &params, &[1, 0, 0, 0], 4);
    assert_eq!(logits, [4.0 - 2.5 - 10.0, 8.0], "each occurrence counts with its own share");
}

#[test]
fn greedy_reports_certainty_and_what_would_have_come_next() {
    let logits = [1.0, 3.0, 2.0, f32::NEG_INFINITY];
    for params in [at(0.0), SamplingParams { top_k: 1, ..at(1.0) }] {
        let mut state = SamplerState::default();
        let top = TopCounts { logprobs: 0, probs: 4 };
        let sampled = Sampler::default().sample(&logits, &params, Context::default(), &mut state, top).expect("chosen");
        assert_eq!((sampled.prob, sampled.top_probs), (1.0, vec![(1, 1.0), (2, 0.0), (0, 0.0)]));
    }
}

#[test]
fn mirostat_approaches_its_surprise_and_can_go_back() {
    let logits: Vec<f32> = (0..1000).map(|id| -f32::ln(id as f32 + 2.0)).collect();
    let params = SamplingParams { mirostat: true, mirostat_tau: 3.0, seed: Some(5), ..at(1.0) };
    let mut state = SamplerState::new(&params, logits.len(), None);
    let (mut tokens, mut surprise, mut limits) = (Vec::new(), 0.0, Vec::new());
    let mut sampler = Sampler::default();
    let top = TopCounts { logprobs: 0, probs: 1 };
    let mut next = |tokens: &[u32], state: &mut SamplerState| {
        let context = Context { tokens, ..Context::default() };
        sampler.sample(&logits, &params, context, state, top).expect("chosen")
    };
    for _ in 0..400 {
        limits.push(state.mirostat_mu());
        let sampled = next(&tokens, &mut state);
        tokens.push(sampled.id);
        surprise -= f64::from(sampled.prob).log2();
    }
    assert!((surprise / 400.0 - 3.0).abs() < 0.15, "{}", surprise / 400.0);
    state.rewind(100);
    assert_eq!(state.mirostat_mu(), limits[100]);
    for position in 100..400 {
        let sampled = next(&tokens[..position], &mut state);
        assert_eq!(sampled.id, tokens[position]);
    }
    state.rewind(0);
    assert_eq!(state.mirostat_mu(), None);
}

#[test]
fn a_skewed_draw_prefers_the_head_or_the_tail_of_the_ranking() {
    let logits = [0.0_f32; 1000];
    let mean = |skew: f32| {
        let params = SamplingParams { skew, ..at(1.0) };
        let counts = histogram(&logits, &params, 2000);
        counts.iter().enumerate().map(|(id, count)| id * count).sum::<usize>() as f64 / 2000.0
    };
    // The mean of u^a over [0, 1) is 1 / (1 + a).
    for skew in [-1.0_f32, 0.0, 1.0] {
        let expected = 1000.0 / (1.0 + f64::from(-skew).exp());
        assert!((mean(skew) - expected).abs() < 30.0, "{skew}: {} instead of {expected}", mean(skew));
    }
}

#[test]
fn xtc_is_the_mean_of_leaving_out_and_not() {
    let logits = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
    let probs = |params: &SamplingParams| {
        let state = SamplerState::new(params, 4, None);
        Sampler::default().distribution(&logits, params, Context::default(), &state).expect("a distribution")
    };
    let params = SamplingParams { xtc_probability: 0.25, xtc_threshold: 0.12, ..at(1.0) };
    // Left out: the first two; what remains of the others is 0.15 and 0.05 of 0.2.
    let expected = [0.5 * 0.75, 0.3 * 0.75, 0.15 * 0.75 + 0.75 * 0.25, 0.05 * 0.75 + 0.25 * 0.25];
    assert!(probs(&params).iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
    let ignoring = SamplingParams { xtc_ignore_tokens: Some(vec![2, 1]), ..params.clone() };
    assert_eq!(probs(&ignoring), probs(&at(1.0)), "one token alone is not left out");
    let always = SamplingParams { xtc_probability: 1.0, ..params };
    assert!(probs(&always).iter().zip([0.0, 0.0, 0.75, 0.25]).all(|(found, expected)| (found - expected).abs() < 1e-6));
}

#[test]
fn the_allowed_tokens_are_the_only_ones() {
    let params = SamplingParams { allowed_token_ids: Some(vec![2, 3]), logit_bias: vec![(2, -100.0)], ..at(0.0) };
    assert_eq!(choose(&[9.0, 8.0, 7.0, 6.0], &params), 3);
}
