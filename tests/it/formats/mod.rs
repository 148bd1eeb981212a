//! Files on disk: what is read, exactly, and what is refused, with which code.

mod checkpoint;
mod config;
mod exl2;
mod gptq;
