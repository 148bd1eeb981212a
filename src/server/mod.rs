//! The HTTP server: OpenAI's routes over one engine, in which every adapter is a model.
