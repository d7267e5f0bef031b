//! `backlot-operator`: parse arguments, set up logs, run.

use backlot_operator::settings::Settings;
use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let filter = tracing_subscriber::EnvFilter::new(&settings.log);
    tracing_subscriber::fmt().json().with_env_filter(filter).with_current_span(false).init();
    backlot_operator::run(settings).await
}
