//! The operator's command: which placeholders it may have, and what stands for them.

use pygmy_protocol::watched::Reason;

use super::{Process, decide::Action};

const KNOWN: [&str; 7] = ["action", "config", "name", "program", "reason", "role", "watcher"];

/// What stands for the placeholders of a command.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a> {
    /// `{config}`: the path of the configuration.
    pub config: &'a str,
    /// `{program}`: the path of this program.
    pub program: &'a str,
    /// `{watcher}`: the server, or the command, that has it run.
    pub watcher: &'a str,
    /// `{reason}`.
    pub reason: Reason,
}

/// Checks that a command has no placeholders but those that are known.
///
/// # Errors
/// The rest of a sentence that begins with the name of the setting.
pub fn check_command(command: &[String]) -> Result<(), String> {
    if command.first().is_some_and(String::is_empty) {
        return Err("begins with no program; name one, or leave it empty: []".to_owned());
    }
    for argument in command {
        for (_, placeholder) in parts(argument) {
            if let Some(name) = placeholder.filter(|name| !KNOWN.contains(name)) {
                let known: Vec<_> = KNOWN.iter().map(|name| format!("{{{name}}}")).collect();
                return Err(format!(
                    "has the unknown placeholder {{{name}}}; known are {}",
                    known.join(", ")
                ));
            }
        }
    }
    Ok(())
}

/// The command that starts `process` again, as it is run.
pub fn fill(process: &Process, fill: &Fill<'_>) -> Vec<String> {
    let action = match fill.reason {
        Reason::Dead => Action::Start,
        Reason::Hung | Reason::Rolling => Action::Restart,
    };
    let value = |name: &str| match name {
        "action" => action.as_str(),
        "config" => fill.config,
        "name" => &process.name,
        "program" => fill.program,
        "reason" => fill.reason.as_str(),
        "role" => process.role.as_str(),
        "watcher" => fill.watcher,
        // The command was checked.
        _ => "",
    };
    let filled = |argument: &String| {
        let parts = parts(argument).into_iter();
        parts.map(|(text, name)| format!("{text}{}", name.map_or("", value))).collect::<String>()
    };
    process.command.iter().map(filled).collect()
}

/// An argument as pieces of text, each with the placeholder that follows it. Braces around
/// anything but small letters and underscores are text: `${HOME}`, `{{.State}}`.
fn parts(argument: &str) -> Vec<(&str, Option<&str>)> {
    let mut parts = Vec::new();
    let (mut text_from, mut from) = (0, 0);
    while let Some(open) = argument[from..].find('{').map(|at| from + at) {
        let inside = &argument[open + 1..];
        let length = inside.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        let length = length.unwrap_or(inside.len());
        if length > 0 && inside[length..].starts_with('}') {
            parts.push((&argument[text_from..open], Some(&inside[..length])));
            text_from = open + length + 2;
            from = text_from;
        } else {
            from = open + 1;
        }
    }
    parts.push((&argument[text_from..], None));
    parts
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::registration::Role;

    use super::*;

    fn filled(argument: &str, reason: Reason) -> String {
        let process = Process {
            name: "a{role}".to_owned(),
            role: Role::Order,
            url: String::new(),
            watcher_url: None,
            parts: Vec::new(),
            command: vec![argument.to_owned()],
        };
        let how = Fill { config: "/c", program: "/p", watcher: "w", reason };
        fill(&process, &how).remove(0)
    }

    #[test]
    fn placeholders_are_filled_once() {
        assert_eq!(filled("pygmy@{name}.service", Reason::Dead), "pygmy@a{role}.service");
        assert_eq!(filled("{action}{reason}", Reason::Dead), "startdead");
        assert_eq!(filled("{action} {reason}", Reason::Hung), "restart hung");
        assert_eq!(filled("{action} {reason}", Reason::Rolling), "restart rolling");
        assert_eq!(filled("{config}{program}{watcher}{role}", Reason::Dead), "/c/pworder");
    }

    #[test]
    fn other_braces_are_text() {
        for text in ["${HOME}", "{{.State}}", "{}", "{", "a}b", "{name", "ä{Ö}"] {
            assert_eq!(filled(text, Reason::Dead), text);
            assert_eq!(check_command(&[text.to_owned()]), Ok(()));
        }
        assert_eq!(filled("{{name}}", Reason::Dead), "{a{role}}");
    }

    #[test]
    fn an_unknown_placeholder_is_named() {
        let error = check_command(&["ssh".to_owned(), "{host}".to_owned()]).unwrap_err();
        assert!(error.starts_with("has the unknown placeholder {host}; known are {action}, "));
        assert!(check_command(&[String::new()]).is_err());
        assert_eq!(check_command(&[]), Ok(()));
    }
}
