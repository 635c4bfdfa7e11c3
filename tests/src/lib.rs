//! What the scenarios share: real processes, real files, checks.
