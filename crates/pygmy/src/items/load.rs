//! Loading a checked file: staged part by part, published in the end.
//!
//! An import is named after the hash of its file. So the same command, given again after it broke
//! off, finds what it has staged and goes on with it: the parts, cut the same way, have the same
//! keys and count once. The name ends in a number, because one that was discarded is used up:
//! [`begin`] takes the first that is not. On its way it finds an import of the file that was
//! published, and leaves it at that.
//!
//! Until all is staged, an import can be broken off and taken back. Once it was asked for,
//! publishing is seen through: who breaks it off cannot know what is on sale.

use std::{fmt, pin::pin, time::Duration};

use anyhow::{anyhow, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use pygmy_client::{operator::Operator, store::StoreError};
use pygmy_protocol::{
    Code, Env,
    command::{ImportRefusal, Outcome},
    import::{ImportId, ItemsBody, MAX_ITEMS, item_that_exists},
    item::Item,
};

use super::{Checked, count, file::ItemsFile, grouped};
use crate::print::Style;

/// Titles and topics of one part, in bytes: six times as much, were every character escaped, fits
/// into a body.
const MAX_PART_TEXT_BYTES: usize = 512 * 1024;
/// Parts under way at a time: the next ones are ready when one is staged, and buys still find a
/// short queue.
const PARTS_UNDER_WAY: usize = 4;

/// What was loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loaded {
    pub(crate) items: u64,
    pub(crate) topics: usize,
    /// They were on sale before.
    pub(crate) already: bool,
    /// Since the first part was sent.
    pub(crate) took: Duration,
}

/// A part of a file.
struct Part {
    number: u64,
    body: ItemsBody,
    /// On which line each item begins.
    lines: Vec<u64>,
}

/// Loads `file`, in which [`super::check()`] has found `checked`. Until this returns, nobody sees
/// any of it. If `interrupted` completes before all is staged, everything is taken back. A file
/// that was loaded before is not loaded again.
///
/// # Errors
/// One of its items exists, the store cannot be reached, it was interrupted.
pub(crate) async fn load(
    env: &Env,
    operator: &Operator,
    file: &mut ItemsFile,
    checked: Checked,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<Loaded> {
    let begun = env.now();
    let mut interrupted = pin!(interrupted);
    let Checked { items, topics, .. } = checked;
    let loaded = |already| {
        let took = env.now().saturating_since(begun);
        Loaded { items, topics, already, took }
    };
    let Some(import) = begin(operator, file, checked).await? else { return Ok(loaded(true)) };
    let bar = progress(items);
    let staged = tokio::select! {
        staged = stage(operator, &import, file, &bar) => staged,
        () = interrupted.as_mut() => Err(anyhow!("it was interrupted")),
    };
    let ended = match staged {
        Ok(()) => publish(operator, &import, items, interrupted).await,
        Err(error) => Err(error),
    };
    bar.finish_and_clear();
    match ended {
        Ok(()) => Ok(loaded(false)),
        Err(error) => Err(broken_off(operator, &import, file, error).await),
    }
}

/// What to say of an import that has failed with `error`. What cannot go on is taken back.
async fn broken_off(
    operator: &Operator,
    import: &ImportId,
    file: &ItemsFile,
    error: anyhow::Error,
) -> anyhow::Error {
    let drops = format!("`pygmy admin import --discard {import}` drops");
    if error.is::<MaybeOnSale>() {
        return error;
    }
    if is_retryable(&error) {
        return error.context(format!(
            "the import broke off, and nothing of it is on sale; the same command goes on with \
             it, and {drops} it"
        ));
    }
    eprintln!("taking back what was staged");
    match discard(operator, import).await {
        Ok(()) => not_loaded(file, error),
        Err(why) => anyhow::Error::new(why).context(format!("{error:#}; {drops} what was staged")),
    }
}

fn not_loaded(file: &ItemsFile, error: anyhow::Error) -> anyhow::Error {
    if is_retryable(&error) {
        return error.context("the import broke off; the same command goes on with it");
    }
    error.context(format!("{} was not loaded", file.path().display()))
}

/// What is said where publishing has an unknown outcome.
#[derive(Debug)]
struct MaybeOnSale;

impl fmt::Display for MaybeOnSale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the items may be on sale, all of them or none; the same command says whether they \
             are, and sees to it",
        )
    }
}

/// Puts on sale what is staged. Whoever is impatient hears that this is not interrupted.
async fn publish(
    operator: &Operator,
    import: &ImportId,
    items: u64,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut publishing = pin!(operator.publish(import, items));
    let published = tokio::select! {
        published = publishing.as_mut() => published,
        () = interrupted => {
            eprintln!("all is staged and being put on sale, which is not interrupted; a moment");
            publishing.await
        }
    };
    match published {
        Ok(_) => Ok(()),
        Err(error) if is_unknown(&error) => Err(anyhow::Error::new(error).context(MaybeOnSale)),
        Err(error) => Err(error.into()),
    }
}

/// Drops all that `import` has staged.
///
/// # Errors
/// As the store says.
pub(crate) async fn discard(operator: &Operator, import: &ImportId) -> Result<(), StoreError> {
    while operator.discard(import).await?.items > 0 {}
    Ok(())
}

/// An import of `file` that takes its items: an earlier one, if it is not finished, or a new one.
/// None if the file was loaded before.
async fn begin(
    operator: &Operator,
    file: &mut ItemsFile,
    checked: Checked,
) -> anyhow::Result<Option<ImportId>> {
    let hash = format!("{:032x}", checked.hash);
    if let Some(import) = unfinished(operator, &hash).await? {
        return Ok(Some(import));
    }
    file.rewind()?;
    let Some(first) = Parts::of(file).next()? else { bail!("the file was changed meanwhile") };
    for number in 1.. {
        let import = format!("{hash}-{number}").parse()?;
        if is_open(operator, &import, &first).await.map_err(|error| not_loaded(file, error))? {
            return Ok(Some(import));
        }
        // Published, or used up: if it was published, publishing it once more says so.
        match operator.publish(&import, checked.items).await {
            Ok(_) => return Ok(None),
            Err(error) if is_finished(&error) => {}
            Err(error) => return Err(not_loaded(file, error.into())),
        }
    }
    bail!("all names are used up")
}

/// An import of the file with this hash that is not finished.
async fn unfinished(operator: &Operator, hash: &str) -> anyhow::Result<Option<ImportId>> {
    for import in operator.unfinished_imports().await? {
        if !import.id.as_str().starts_with(hash) {
            continue;
        }
        if !import.discarding {
            eprintln!(
                "going on with an import of this file, of which {} staged",
                are(import.items)
            );
            return Ok(Some(import.id));
        }
        eprintln!("taking back what is left of an import of this file");
        discard(operator, &import.id).await?;
    }
    Ok(None)
}

/// Whether `import` has taken its first part and takes more. One that is finished may answer as it
/// did when it was open: the key of the part is still known.
async fn is_open(operator: &Operator, import: &ImportId, first: &Part) -> anyhow::Result<bool> {
    match first.stage(operator, import).await {
        Ok(()) => {
            let unfinished = operator.unfinished_imports().await?;
            Ok(unfinished.iter().any(|open| open.id == *import && !open.discarding))
        }
        Err(error) if is_finished(&error) => Ok(false),
        Err(error) => Err(first.explain(error)),
    }
}

fn is_unknown(error: &StoreError) -> bool {
    matches!(error, StoreError::Problem(problem) if problem.code == Code::OutcomeUnknown)
}

/// Whether the store says that the import is over, or that there is none of this name.
fn is_finished(error: &StoreError) -> bool {
    let refusal = Outcome::ImportRefused(ImportRefusal::NotOpen).problem();
    matches!(error, StoreError::Problem(problem) if Some(problem) == refusal.as_ref())
}

fn are(items: u64) -> String {
    format!("{} {}", count(items, "item"), if items == 1 { "is" } else { "are" })
}

fn is_retryable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_retryable)
}

async fn stage(
    operator: &Operator,
    import: &ImportId,
    file: &mut ItemsFile,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    file.rewind()?;
    let mut parts = Parts::of(file);
    stream::iter(std::iter::from_fn(|| parts.next().transpose()))
        .map(|part| async move {
            let part = part?;
            part.stage(operator, import).await.map_err(|error| part.explain(error))?;
            bar.inc(part.lines.len() as u64);
            anyhow::Ok(())
        })
        .buffered(PARTS_UNDER_WAY)
        .try_collect()
        .await
}

impl Part {
    async fn stage(&self, operator: &Operator, import: &ImportId) -> Result<(), StoreError> {
        operator.stage(import, self.number, &self.body).await.map(drop)
    }

    fn explain(&self, error: StoreError) -> anyhow::Error {
        let StoreError::Problem(problem) = &error else { return error.into() };
        let item = item_that_exists(problem);
        let place = self.body.items.iter().position(|i| Some(i.item_number) == item);
        match place {
            Some(place) if problem.code == Code::ItemExists => {
                anyhow::Error::new(error).context(format!("line {}", self.lines[place]))
            }
            _ => error.into(),
        }
    }
}

/// Cuts a file into parts, every time the same.
struct Parts<'a> {
    file: &'a mut ItemsFile,
    next: u64,
    /// What did not fit the part before.
    held: Option<(u64, Item)>,
}

impl Parts<'_> {
    /// The parts of a file, which is at its beginning.
    fn of(file: &mut ItemsFile) -> Parts<'_> {
        Parts { file, next: 1, held: None }
    }

    fn next(&mut self) -> anyhow::Result<Option<Part>> {
        let mut part =
            Part { number: self.next, body: ItemsBody { items: Vec::new() }, lines: Vec::new() };
        let mut bytes = 0;
        while part.lines.len() < MAX_ITEMS
            && let Some((line, item)) = self.item()?
        {
            bytes += item.title.len() + item.topic.len();
            if bytes > MAX_PART_TEXT_BYTES {
                self.held = Some((line, item));
                break;
            }
            part.body.items.push(item);
            part.lines.push(line);
        }
        self.next += 1;
        Ok((!part.lines.is_empty()).then_some(part))
    }

    fn item(&mut self) -> anyhow::Result<Option<(u64, Item)>> {
        if self.held.is_some() {
            return Ok(self.held.take());
        }
        match self.file.next()? {
            None => Ok(None),
            Some(Ok(item)) => Ok(Some(item)),
            Some(Err(bad)) => bail!("the file was changed meanwhile: {bad}"),
        }
    }
}

/// A bar of items. On no terminal there is none.
fn progress(items: u64) -> ProgressBar {
    let bar = ProgressBar::new(items);
    let colour = if Style::of_stderr().colours { ".cyan" } else { "" };
    let template =
        format!("{{bar:32{colour}}} {{human_pos}}/{{human_len}} items, {{rate}}/s, {{eta}} left");
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // A line that cannot be shown is no reason to stop.
        let _ = out.write_str(&grouped(state.per_sec() as u64));
    };
    // The template is ours and valid; if it were not, the default does.
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (items, topics) = (count(self.items, "item"), count(self.topics as u64, "topic"));
        let (are, were) = if self.items == 1 { ("is", "was") } else { ("are", "were") };
        if self.already {
            return write!(
                f,
                "this file was imported before: its {items} in {topics} {were} put on sale then; \
                 nothing was changed"
            );
        }
        write!(f, "{items} in {topics} {are} on sale after {:.1} s", self.took.as_secs_f64())
    }
}
