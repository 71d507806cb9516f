//! The ledger on files, and on disks that fail.

mod files;
pub(super) mod sample;
