//! `pygmy client`: the client process of the reference design and its test cases.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use pygmy_client::{
    cases,
    operator::Operator,
    process,
    store::{Patience, Store},
};
use pygmy_protocol::Env;

use crate::{admin::Cluster, cli::ClientArgs, print, runtime::block_on, wait};

/// Runs the client process, or the test cases.
pub(crate) fn run(args: &ClientArgs) -> anyhow::Result<()> {
    let env = Env::production();
    // With the front ends named, the client process needs to know nothing else.
    let needed = args.tests || args.server.is_empty();
    let cluster = needed.then(|| Cluster::find(&args.operator)).transpose()?;
    let urls = match &cluster {
        Some(cluster) if args.server.is_empty() => cluster.public_urls()?,
        _ => args.server.clone(),
    };
    let store = Store::new(&env, &urls, Patience::default()).map_err(|e| anyhow!(e))?;
    let store = store.with_notice(wait::notice);
    if let (true, Some(cluster)) = (args.tests, cluster) {
        let operator = cluster.operator(&env)?;
        let out = args.out.clone().unwrap_or_else(|| PathBuf::from("tests.txt"));
        return block_on(&env, async {
            // A store that is not there is that, and no failed test.
            store.topics().await?;
            run_cases(&env, &store, &operator, &out).await
        })?;
    }
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("ClientOutput.txt"));
    block_on(&env, run_process(&env, &store, &out))?
}

/// Runs the client process with its log in `out`.
///
/// # Errors
/// `out` cannot be written, or the store did not answer everything.
pub(crate) async fn run_process(env: &Env, store: &Store, out: &Path) -> anyhow::Result<()> {
    let seen = process::run(env, store, create(out)?).await;
    let seen = seen.with_context(|| format!("cannot write {}", out.display()))?;
    let printed = print::line(format_args!(
        "client process: requests {}, copies bought {}, refused {}, failed {}\neach is in {}",
        seen.requests,
        seen.bought,
        seen.refused,
        seen.failed,
        out.display()
    ));
    match seen.last_failure {
        None => Ok(printed?),
        Some(failure) => Err(failure).with_context(|| {
            let answers = seen.requests - seen.failed;
            format!("the client process got {answers} of {} answers", seen.requests)
        }),
    }
}

/// Runs the test cases with their results in `out`, and prints them.
///
/// # Errors
/// `out` cannot be written, or a case fails.
pub(crate) async fn run_cases(
    env: &Env,
    store: &Store,
    operator: &Operator,
    out: &Path,
) -> anyhow::Result<()> {
    let cases = cases::run(env, store, operator, create(out)?).await;
    let cases = cases.with_context(|| format!("cannot write {}", out.display()))?;
    let printed = cases.iter().try_for_each(|case| match &case.result {
        Ok(_) => print::line(format_args!("PASS {}", case.name)),
        Err(_) => print::line(case),
    });
    let failed = cases.iter().filter(|case| !case.passed()).count();
    if failed > 0 {
        // Also for those who read only the beginning of it.
        bail!("{failed} of {} test cases failed; see {}", cases.len(), out.display());
    }
    printed?;
    Ok(print::line(format_args!("all {} test cases passed; see {}", cases.len(), out.display()))?)
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::new(file))
}
