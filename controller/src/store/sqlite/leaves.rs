//! What version 4 of the schema knows of hosts that left: when each said that it would be back.

/// The step; see [`super::schema`].
pub(super) const STEP: &str = "ALTER TABLE hosts ADD COLUMN back_by INTEGER;";
