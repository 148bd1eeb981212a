//! The walk. SKELETON
