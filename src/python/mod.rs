//! Python face. SKELETON
