//! A request as a Python object: each keyword, its default and its conversion are written here.

use exlora::engine::{AdapterRef, Filters, Grammar, Request};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::args::{MixtureArg, PromptArg, StopsArg, TextsArg};
use crate::chat::{ContinueFinalMessage, JsonObjects, TemplateKwargs, chat_options, to_python};
use crate::grammar::{FilterObjects, JsonSchemaArg, grammar, set_keywords};
use crate::numbers::{count, integer, optional_integer};
use crate::post_sampling::Hooks;
use crate::returns::{JsonObjectsOut, NamedMixture, NamedValues, PromptOut, StopOut, TemplateKwargsOut};
use crate::sampling_params::PySamplingParams;

/// A prompt and how to continue it.
#[pyclass(frozen, eq, name = "Request", module = "exlora._exlora")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyRequest {
    /// Its sampling is that of `sampling`; it has no filters, which are in `filters`.
    request: Request,
    sampling: PySamplingParams,
    /// Those of `request` are made of these.
    hooks: Hooks,
    filters: FilterObjects,
}

impl PyRequest {
    /// The request for the engine.
    pub(crate) fn request(&self) -> Request {
        let mut request = self.request.clone();
        request.filters = self.filters.filters(request.filters.prefer_eos);
        request.post_sampling_hooks = self.hooks.hooks();
        request
    }

    /// The request for several samples.
    pub(crate) fn samples(&self, n: usize) -> Request {
        self.request().n(n)
    }

    fn named_mixture<'py>(&self, py: Python<'py>) -> PyResult<Option<NamedMixture<'py>>> {
        let names: Vec<_> = self.request.adapters.iter().map(|(adapter, weight)| (adapter.label(), *weight)).collect();
        NamedMixture::new(py, &names)
    }

    fn named_draft_mixture<'py>(&self, py: Python<'py>) -> PyResult<Option<NamedMixture<'py>>> {
        let adapters = self.request.draft_adapters.iter();
        let names: Vec<_> = adapters.map(|(adapter, weight)| (adapter.label(), *weight)).collect();
        NamedMixture::new(py, &names)
    }

    fn stops(&self) -> Vec<StopOut> {
        self.request.stop.iter().map(StopOut::from).collect()
    }

    /// All settings by keyword.
    fn keywords<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let request = &self.request;
        let dict = PyDict::new(py);
        dict.set_item("prompt", PromptOut(&request.prompt))?;
        dict.set_item("adapter", self.named_mixture(py)?)?;
        dict.set_item("negative_prompt", request.negative_prompt.as_ref().map(PromptOut))?;
        dict.set_item("max_new_tokens", request.max_new_tokens)?;
        dict.set_item("min_new_tokens", request.min_new_tokens)?;
        dict.set_item("stop", self.stops())?;
        dict.set_item("banned_strings", &request.banned_strings)?;
        dict.set_item("stop_at_eos", request.stop_at_eos)?;
        dict.set_item("logprobs", request.logprobs)?;
        dict.set_item("probs", request.probs)?;
        dict.set_item("post_sampling_hooks", self.hooks.clone())?;
        dict.set_item("return_logits", request.return_logits)?;
        dict.set_item("ngram_draft", request.ngram_draft)?;
        dict.set_item("max_ngram", request.max_ngram)?;
        dict.set_item("num_draft_tokens", request.num_draft_tokens)?;
        dict.set_item("draft_adapters", self.named_draft_mixture(py)?)?;
        dict.set_item("skip_special_tokens", request.skip_special_tokens)?;
        dict.set_item("add_special_tokens", request.add_special_tokens)?;
        set_keywords(&dict, request.grammar.as_ref())?;
        dict.set_item("filters", self.filters.objects(py))?;
        dict.set_item("filter_prefer_eos", request.filters.prefer_eos)?;
        dict.set_item("token_healing", request.token_healing)?;
        let chat = &request.chat;
        dict.set_item("tools", to_python(py, &chat.tools)?)?;
        dict.set_item("documents", to_python(py, &chat.documents)?)?;
        dict.set_item("chat_template", chat.chat_template.as_deref())?;
        dict.set_item("chat_template_kwargs", to_python(py, &chat.chat_template_kwargs)?)?;
        dict.set_item("add_generation_prompt", chat.add_generation_prompt)?;
        dict.set_item("continue_final_message", chat.continue_final_message.as_deref())?;
        dict.update(self.sampling.keywords(py)?.as_mapping())?;
        Ok(dict)
    }
}

#[pymethods]
impl PyRequest {
    /// A request. Adapters are looked up when it is submitted. The keywords of `SamplingParams` are taken too; they change
    /// those of `sampling`.
    #[new]
    #[pyo3(signature = (prompt, adapter=None, *, sampling=None, negative_prompt=None, max_new_tokens: "SupportsIndex"=128,
                        min_new_tokens: "SupportsIndex"=0, stop=None, banned_strings=None, stop_at_eos=true,
                        logprobs: "SupportsIndex"=0, probs: "SupportsIndex"=0, post_sampling_hooks=None,
                        return_logits=false, ngram_draft=false, max_ngram: "SupportsIndex"=4,
                        num_draft_tokens: "SupportsIndex | None"=None, draft_adapters=None, skip_special_tokens=true,
                        add_special_tokens=true, json_schema=None, json_object=false, regex=None, grammar=None,
                        gbnf=None, choices=None, filters=None, filter_prefer_eos=false, token_healing=false, tools=None,
                        documents=None, chat_template=None, chat_template_kwargs=None, add_generation_prompt=None,
                        continue_final_message=None, **keywords: "Any"))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        prompt: PromptArg,
        adapter: Option<MixtureArg>,
        sampling: Option<&Bound<'_, PySamplingParams>>,
        negative_prompt: Option<PromptArg>,
        #[pyo3(from_py_with = integer)] max_new_tokens: i64,
        #[pyo3(from_py_with = integer)] min_new_tokens: i64,
        stop: Option<StopsArg>,
        banned_strings: Option<TextsArg>,
        stop_at_eos: bool,
        #[pyo3(from_py_with = integer)] logprobs: i64,
        #[pyo3(from_py_with = integer)] probs: i64,
        post_sampling_hooks: Option<Hooks>,
        return_logits: bool,
        ngram_draft: bool,
        #[pyo3(from_py_with = integer)] max_ngram: i64,
        #[pyo3(from_py_with = optional_integer)] num_draft_tokens: Option<i64>,
        draft_adapters: Option<MixtureArg>,
        skip_special_tokens: bool,
        add_special_tokens: bool,
        json_schema: Option<JsonSchemaArg>,
        json_object: bool,
        regex: Option<String>,
        grammar: Option<String>,
        gbnf: Option<String>,
        choices: Option<TextsArg>,
        filters: Option<Vec<Py<PyAny>>>,
        filter_prefer_eos: bool,
        token_healing: bool,
        tools: Option<JsonObjects>,
        documents: Option<JsonObjects>,
        chat_template: Option<String>,
        chat_template_kwargs: Option<TemplateKwargs>,
        add_generation_prompt: Option<bool>,
        continue_final_message: Option<ContinueFinalMessage>,
        keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let sampling = PySamplingParams::with_keywords(py, sampling, keywords)?;
        let filters = FilterObjects::new(py, filters.unwrap_or_default())?;
        let request = Request {
            grammar: self::grammar(json_schema, json_object, regex, grammar, gbnf, choices.map(|texts| texts.0))?,
            filters: Filters { prefer_eos: filter_prefer_eos, ..Filters::default() },
            token_healing,
            negative_prompt: negative_prompt.map(|prompt| prompt.0),
            adapters: adapter.unwrap_or_default().0,
            max_new_tokens: count("max_new_tokens", max_new_tokens)?,
            min_new_tokens: count("min_new_tokens", min_new_tokens)?,
            sampling: sampling.params(),
            stop: stop.unwrap_or_default().0,
            banned_strings: banned_strings.map(|texts| texts.0).unwrap_or_default(),
            stop_at_eos,
            logprobs: count("logprobs", logprobs)?,
            probs: count("probs", probs)?,
            return_logits,
            ngram_draft,
            max_ngram: count("max_ngram", max_ngram)?,
            num_draft_tokens: num_draft_tokens.map(|tokens| count("num_draft_tokens", tokens)).transpose()?,
            draft_adapters: draft_adapters.unwrap_or_default().0,
            skip_special_tokens,
            add_special_tokens,
            chat: chat_options(
                add_generation_prompt,
                continue_final_message,
                tools,
                documents,
                chat_template,
                chat_template_kwargs,
            ),
            ..Request::new(prompt.0)
        };
        Ok(Self { request, sampling, hooks: post_sampling_hooks.unwrap_or_default(), filters })
    }

    /// The prompt: text, token ids or chat messages.
    #[getter]
    fn prompt(&self) -> PromptOut<'_> {
        PromptOut(&self.request.prompt)
    }

    /// The mixture: `None` for the base, a name for one adapter of weight 1, else a dict of name to weight (a list of pairs
    /// if a name appears twice).
    #[getter]
    fn adapter<'py>(&self, py: Python<'py>) -> PyResult<Option<NamedMixture<'py>>> {
        self.named_mixture(py)
    }

    /// Another prompt, which the text is guided away from as `cfg_scale` says: text, token ids or chat messages.
    #[getter]
    fn negative_prompt(&self) -> Option<PromptOut<'_>> {
        self.request.negative_prompt.as_ref().map(PromptOut)
    }

    /// How tokens are chosen.
    #[getter]
    fn sampling(&self) -> PySamplingParams {
        self.sampling.clone()
    }

    /// Largest number of new tokens.
    #[getter]
    fn max_new_tokens(&self) -> usize {
        self.request.max_new_tokens
    }

    /// Up to this number of new tokens, only `max_new_tokens` ends the text: tokens that would end it are not chosen, and
    /// stop strings become part of it.
    #[getter]
    fn min_new_tokens(&self) -> usize {
        self.request.min_new_tokens
    }

    /// Token ids and strings that end the text.
    #[getter]
    fn stop(&self) -> Vec<StopOut> {
        self.stops()
    }

    /// Strings that the text does not contain.
    #[getter]
    fn banned_strings(&self) -> Vec<String> {
        self.request.banned_strings.clone()
    }

    /// Whether the model's end-of-sequence ids end the text.
    #[getter]
    fn stop_at_eos(&self) -> bool {
        self.request.stop_at_eos
    }

    /// Number of top log-probabilities for each token; 0 for no log-probabilities.
    #[getter]
    fn logprobs(&self) -> usize {
        self.request.logprobs
    }

    /// Number of top probabilities for each token after penalties and filters; 0 for no probabilities.
    #[getter]
    fn probs(&self) -> usize {
        self.request.probs
    }

    /// Callables that get a `PostSampling` for each chosen token, in this order; each may replace its `token`.
    #[getter]
    fn post_sampling_hooks(&self) -> Hooks {
        self.hooks.clone()
    }

    /// Whether the logits that each token was chosen from are returned.
    #[getter]
    fn return_logits(&self) -> bool {
        self.request.return_logits
    }

    /// Whether tokens are drafted from the prompt and the output themselves.
    #[getter]
    fn ngram_draft(&self) -> bool {
        self.request.ngram_draft
    }

    /// Largest number of last tokens that such a draft looks for.
    #[getter]
    fn max_ngram(&self) -> usize {
        self.request.max_ngram
    }

    /// Largest number of tokens drafted for a step; `None`: the engine's.
    #[getter]
    fn num_draft_tokens(&self) -> Option<usize> {
        self.request.num_draft_tokens
    }

    /// The mixture of the draft model, as `adapter`.
    #[getter]
    fn draft_adapters<'py>(&self, py: Python<'py>) -> PyResult<Option<NamedMixture<'py>>> {
        self.named_draft_mixture(py)
    }

    /// Whether special tokens are left out of the text.
    #[getter]
    fn skip_special_tokens(&self) -> bool {
        self.request.skip_special_tokens
    }

    /// Whether the tokenizer adds its own special tokens (a BOS) to a text prompt.
    #[getter]
    fn add_special_tokens(&self) -> bool {
        self.request.add_special_tokens
    }

    /// The JSON schema that the text is valid under, as text.
    #[getter]
    fn json_schema(&self) -> Option<&str> {
        match &self.request.grammar {
            Some(Grammar::JsonSchema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// Whether the text is a JSON object.
    #[getter]
    fn json_object(&self) -> bool {
        self.request.grammar == Some(Grammar::JsonObject)
    }

    /// The regular expression that the whole text matches.
    #[getter]
    fn regex(&self) -> Option<&str> {
        match &self.request.grammar {
            Some(Grammar::Regex(pattern)) => Some(pattern),
            _ => None,
        }
    }

    /// The grammar of the text, in Lark syntax.
    #[getter]
    fn grammar(&self) -> Option<&str> {
        match &self.request.grammar {
            Some(Grammar::Lark(grammar)) => Some(grammar),
            _ => None,
        }
    }

    /// The grammar of the text, in llama.cpp's GBNF.
    #[getter]
    fn gbnf(&self) -> Option<&str> {
        match &self.request.grammar {
            Some(Grammar::Gbnf(grammar)) => Some(grammar),
            _ => None,
        }
    }

    /// The strings of which the text is one.
    #[getter]
    fn choices(&self) -> Option<Vec<String>> {
        match &self.request.grammar {
            Some(Grammar::Choices(choices)) => Some(choices.clone()),
            _ => None,
        }
    }

    /// The objects that limit the tokens.
    #[getter]
    fn filters(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.filters.objects(py)
    }

    /// Whether a token that ends the text is chosen as soon as the filters allow one.
    #[getter]
    fn filter_prefer_eos(&self) -> bool {
        self.request.filters.prefer_eos
    }

    /// Whether the first new token may replace the last one of the prompt by one that begins with its text.
    #[getter]
    fn token_healing(&self) -> bool {
        self.request.token_healing
    }

    /// The functions that the model may call, for its chat template.
    #[getter]
    fn tools(&self) -> Option<JsonObjectsOut<'_>> {
        self.request.chat.tools.as_deref().map(JsonObjectsOut)
    }

    /// The documents for its chat template.
    #[getter]
    fn documents(&self) -> Option<JsonObjectsOut<'_>> {
        self.request.chat.documents.as_deref().map(JsonObjectsOut)
    }

    /// The name of a chat template of the model, or the text of another one.
    #[getter]
    fn chat_template(&self) -> Option<&str> {
        self.request.chat.chat_template.as_deref()
    }

    /// Other variables of the chat template.
    #[getter]
    fn chat_template_kwargs(&self) -> TemplateKwargsOut<'_> {
        TemplateKwargsOut(&self.request.chat.chat_template_kwargs)
    }

    /// Whether a chat ends with the start of an answer; `None`: unless the final message is continued.
    #[getter]
    fn add_generation_prompt(&self) -> Option<bool> {
        self.request.chat.add_generation_prompt
    }

    /// The field of the final message that is continued.
    #[getter]
    fn continue_final_message(&self) -> Option<&str> {
        self.request.chat.continue_final_message.as_deref()
    }

    /// Prompt, mixture and all settings by keyword; `Request(**request.to_dict())` is the same request.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<NamedValues<'py>> {
        self.keywords(py).map(NamedValues)
    }

    #[pyo3(signature = () -> "tuple[tuple[()], dict[str, object]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((), Bound<'py, PyDict>)> {
        let mut adapters = self.request.adapters.iter().chain(&self.request.draft_adapters);
        if adapters.any(|(adapter, _)| matches!(adapter, AdapterRef::Lease(_))) {
            return Err(PyTypeError::new_err("a request with a loaded adapter object cannot be pickled; use a name"));
        }
        Ok(((), self.keywords(py)?))
    }

    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Requests are immutable.
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        let _ = memo;
        slf
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let prompt = PromptOut(&self.request.prompt).into_pyobject(py)?.repr()?;
        let adapter = self.named_mixture(py)?.into_pyobject(py)?.repr()?;
        let (tokens, sampling) = (self.request.max_new_tokens, self.sampling.repr(py)?);
        Ok(format!("Request({prompt}, adapter={adapter}, max_new_tokens={tokens}, sampling={sampling})"))
    }
}
