//! Shows the images of a checkout and what each is called.
//!
//! Invariant: listing builds nothing; an image whose present state is not built is shown as such.

use anyhow::Result;

use super::archive::{self, Built};
use super::source;
use super::store::Store;

/// Prints a table, or the records as JSON.
pub fn list(store: &Store, json: bool) -> Result<()> {
    let mut rows: Vec<(String, Option<Built>)> = Vec::new();
    for source in source::all(store)? {
        // The programs inside an image are part of its state, and only building tells whether they are fresh.
        let built = if source.binaries.is_empty() {
            archive::read(store, &source.name, &source.hash(&[])?)
        } else {
            archive::newest(store, &source.name)?
        };
        rows.push((source.name, built));
    }
    if json {
        let built: Vec<Built> = rows.into_iter().filter_map(|(_, built)| built).collect();
        println!("{}", serde_json::to_string_pretty(&built)?);
        return Ok(());
    }
    for (name, built) in rows {
        match built {
            Some(built) => {
                println!("{name:<16} {:<10} {:>5} MB  {}", built.version, built.bytes / 1_000_000, built.pinned());
            }
            None => println!("{name:<16} not built: cargo xtask image build {name}"),
        }
    }
    Ok(())
}
