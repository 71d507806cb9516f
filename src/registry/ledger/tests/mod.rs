//! The ledger on files, and on disks that fail.

mod faults;
mod files;
mod import;
mod place;
mod salvage;
pub(super) mod sample;
