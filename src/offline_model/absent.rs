//! In place of the offline model, in a binary that was built without it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// A model that can't be started.
#[derive(Debug)]
pub enum OfflineModel {}

impl OfflineModel {
    /// Says what is missing.
    ///
    /// # Errors
    /// Always, as [`io::ErrorKind::Unsupported`].
    pub async fn start(_addr: SocketAddr) -> io::Result<OfflineModel> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this binary was built without it; build one with the cargo feature offline-model, or \
             serve a real model",
        ))
    }

    /// There is none to say anything of.
    pub fn config_overrides(&self) -> Vec<String> {
        match *self {}
    }

    /// There is none to write of.
    ///
    /// # Errors
    /// None.
    pub fn write_catalog(&self, _directory: &Path) -> io::Result<String> {
        match *self {}
    }

    /// There is none to end.
    pub async fn shutdown(self) {
        match self {}
    }
}
