//! Files on disk: what is read, exactly, and what is refused, with which code.

#[path = "../support/mod.rs"]
mod support;

mod checkpoint;
mod config;
mod exl2;
mod gptq;
