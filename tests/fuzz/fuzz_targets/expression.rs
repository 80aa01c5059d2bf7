//! Any bytes as a label expression, guided by coverage.
