//! adapter_config.json. SKELETON
