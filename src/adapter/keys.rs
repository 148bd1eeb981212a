//! PEFT keys to sites. SKELETON
