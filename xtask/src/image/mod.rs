//! Container images on a machine without a container engine and without a registry.
//!
//! Every image is an ordinary Containerfile, so the same folders build anywhere. Here they are built by podman in a store of the
//! project's own under the cache, on a Debian base made from packages. The machine's own engine configuration is never
//! touched, and one lock keeps several checkouts on one machine apart.

mod archive;
mod base;
mod binaries;
mod build;
mod conform;
mod conform_selftest;
mod engine;
mod list;
mod load;
mod packages;
mod process;
mod source;
mod store;
mod trial;
mod types;

use std::time::Duration;

use clap::Subcommand;

pub use build::{build, build_all};
pub use load::load;
pub use store::Store;

/// What can be done with images.
#[derive(Subcommand)]
pub enum Command {
    /// Build images, or say that they are built, and print their digests.
    Build {
        /// Folder names: `images/NAME`, `dev/images/NAME`, or `operator`.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Build every image of the checkout.
        #[arg(long)]
        all: bool,
    },
    /// Show every image of the checkout with its reference pinned by digest.
    List {
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Build images, give them to every node of a local cluster under tag and digest, and print them pinned by digest.
    Load {
        /// Folder names, as for `build`.
        #[arg(required = true)]
        names: Vec<String>,
        /// Name of the local cluster.
        #[arg(long, default_value = "dev")]
        cluster: String,
    },
    /// Build images and run their own tests, without Kubernetes.
    Test {
        /// Folder names, as for `build`.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Test every image that has tests.
        #[arg(long)]
        all: bool,
        /// User id of the members; one that the images do not know.
        #[arg(long, default_value_t = 54_321)]
        uid: u32,
        /// Leave containers and files for a look.
        #[arg(long)]
        keep: bool,
        /// Show every call of a verb.
        #[arg(long)]
        verbose: bool,
        /// Longest time of one image's tests, in seconds.
        #[arg(long, default_value_t = 900)]
        limit: u64,
    },
    /// Build images and run the conformance kit on them.
    Conform {
        /// Folder names, as for `build`.
        #[arg(required = true)]
        names: Vec<String>,
        /// Keep the results beside the image, in test/results.json, where docs/types.md is made from them.
        #[arg(long)]
        keep_results: bool,
        /// Arguments of `backlot conform`, after `--`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Write docs/types.md from the results kept beside the images.
    Types,
    /// Test the conformance kit: images that break one rule each, and the check that must catch it.
    ConformSelftest {
        /// Names of rules or checks; all when absent.
        names: Vec<String>,
    },
    /// The command `db` of test scripts; see images/README.md.
    #[command(subcommand, hide = true)]
    Db(trial::Command),
    /// Run the container engine on the project's own store, for instance `cargo xtask image engine images`.
    Engine {
        /// Arguments of the engine.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Runs one of the image commands.
pub fn run(command: Command) -> anyhow::Result<()> {
    let store = Store::open()?;
    match command {
        Command::Build { all: true, .. } => build_all(&store).map(drop),
        Command::Build { names, all: false } => names.iter().try_for_each(|name| build(&store, name).map(drop)),
        Command::List { json } => list::list(&store, json),
        Command::Load { names, cluster } => {
            names.iter().try_for_each(|name| load(&store, &cluster, name).map(|built| println!("{}", built.pinned())))
        }
        Command::Test { names, all, uid, keep, verbose, limit } => {
            let names = if all { source::tested(&store)? } else { names };
            let options = trial::Options { uid, keep, verbose, limit: Duration::from_secs(limit) };
            names.iter().try_for_each(|name| trial::run(&store, name, &options))
        }
        Command::Conform { names, keep_results, arguments } => {
            conform::conform(&store, &names, &arguments, keep_results)
        }
        Command::Types => types::write(&store),
        Command::ConformSelftest { names } => conform_selftest::selftest(&store, &names),
        Command::Db(command) => trial::dispatch(command),
        Command::Engine { arguments } => engine::Engine::ready(&store)?.interactive(&arguments),
    }
}
