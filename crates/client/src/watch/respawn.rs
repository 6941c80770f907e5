//! Running the command that starts a process again.

use std::time::Duration;

use pygmy_protocol::{
    Env,
    env::{Ended, TimedOut},
    watched::Reason,
};

use super::{Fill, Watcher, decide::Action, fill};

/// Longest time for a command. One that takes longer is ended, and has failed.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `command` to its end and gives what it wrote.
///
/// # Errors
/// How it failed.
pub async fn run_command(env: &Env, command: &[String]) -> Result<String, String> {
    match env.timeout(COMMAND_TIMEOUT, env.processes.run(command)).await {
        Ok(Ok(Ended { success: true, output, .. })) => Ok(output),
        Ok(Ok(Ended { how, output, .. })) if output.is_empty() => Err(how),
        Ok(Ok(Ended { how, output, .. })) => Err(format!("{how}: {output}")),
        Ok(Err(error)) => {
            let program = command.first().map_or("", String::as_str);
            Err(format!("cannot run {program:?}: {error}"))
        }
        Err(TimedOut) => Err(format!("no end within {} s", COMMAND_TIMEOUT.as_secs())),
    }
}

impl Watcher {
    /// Runs the command of a process, which was begun.
    pub(super) async fn respawn(&self, index: usize, action: Action) {
        let Some(other) = self.others.get(index) else { return };
        let server = &other.process.name;
        // Nobody closes it.
        let _permit = self.commands.acquire().await;
        let reason = match action {
            Action::Start => Reason::Dead,
            Action::Restart => Reason::Hung,
        };
        let config = &self.config;
        let how = Fill {
            config: &config.config,
            program: &config.program,
            watcher: &config.name,
            reason,
        };
        let command = fill(&other.process, &how);
        tracing::warn!(
            server,
            action = action.as_str(),
            reason = reason.as_str(),
            "starting it again"
        );
        let begun = self.env.now();
        let ended = run_command(&self.env, &command).await;
        let took_ms = self.env.now().saturating_since(begun).as_millis() as u64;
        other.target().end(&config.name, ended.as_ref().err().map(String::as_str), self.moment());
        match ended {
            Ok(output) => {
                self.done.inc();
                tracing::info!(server, took_ms, output, "started again; waiting until it answers");
            }
            Err(failure) => {
                self.failed.inc();
                let not_before = other.target().not_before(&config.settings);
                let again_ms = not_before.saturating_since(self.env.now()).as_millis() as u64;
                tracing::error!(
                    server,
                    took_ms,
                    failure,
                    again_ms,
                    ?command,
                    "the command that starts it again has failed; correct [respawn], or start the \
                     server by hand and read its log"
                );
            }
        }
    }
}
