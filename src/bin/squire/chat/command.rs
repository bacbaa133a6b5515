//! What a line of a chat is: a message, or a command that begins with a slash.
#![forbid(unsafe_code)]

use std::path::PathBuf;

/// A line, read.
#[derive(Debug, PartialEq)]
pub enum Line {
    Message(String),
    Command(Command),
}

#[derive(Debug, PartialEq)]
pub enum Command {
    Help,
    Reset,
    /// Empty: none.
    System(String),
    Undo,
    Regenerate,
    Save(PathBuf),
    Stats,
    Set {
        name: String,
        value: String,
    },
    Quit,
}

/// What /help says.
pub const HELP: &str = "\
  /help             these lines
  /reset            begin anew, with the same system message
  /system TEXT      begin anew with this system message; without TEXT with none
  /undo             drop the last message and its answer
  /regenerate       answer the last message again, by another seed
  /save FILE        write the messages as JSON into a file that is not there yet
  /stats            how long the conversation is and how fast it goes
  /set NAME VALUE   another value for an option of sampling, as temperature 0.5
  /quit             end the chat, as an empty line does
  //TEXT            a message that begins with a slash
Ctrl-C ends an answer; what was said of it stays.";

impl Line {
    /// Reads a line without its end. Error: what was wrong with a command, by its name.
    pub fn read(line: &str) -> Result<Line, String> {
        let Some(behind) = line.strip_prefix('/') else { return Ok(Line::Message(line.into())) };
        if behind.starts_with('/') {
            return Ok(Line::Message(behind.into()));
        }
        let (name, rest) = behind.split_once(char::is_whitespace).unwrap_or((behind, ""));
        let rest = rest.trim();
        let alone = |command| match rest {
            "" => Ok(command),
            _ => Err(format!("/{name}: wanted nothing behind it, found {rest:?}")),
        };
        let command = match name {
            "help" => alone(Command::Help),
            "reset" => alone(Command::Reset),
            "system" => Ok(Command::System(rest.into())),
            "undo" => alone(Command::Undo),
            "regenerate" => alone(Command::Regenerate),
            "save" if rest.is_empty() => Err("/save: wanted a file, found nothing".into()),
            "save" => Ok(Command::Save(rest.into())),
            "stats" => alone(Command::Stats),
            "set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(Command::Set { name: name.into(), value: value.trim().into() }),
                None => Err(format!("/set: wanted a name and a value, as temperature 0.5, found {rest:?}")),
            },
            "quit" => alone(Command::Quit),
            _ => {
                let name = format!("/{name}");
                Err(format!("unknown command {name:?}; /help lists them, and // begins a message with a slash"))
            }
        };
        command.map(Line::Command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_unless_one_slash_begins_it() {
        let message = |text: &str| Ok(Line::Message(text.into()));
        assert_eq!(Line::read("hello /help"), message("hello /help"));
        assert_eq!(Line::read(" /help"), message(" /help"));
        assert_eq!(Line::read("//help"), message("/help"));
        assert_eq!(Line::read("///"), message("//"));
    }

    #[test]
    fn commands_are_read_with_what_stands_behind_them() {
        let command = |line: &str| match Line::read(line) {
            Ok(Line::Command(command)) => command,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(command("/help"), Command::Help);
        assert_eq!(command("/undo  "), Command::Undo);
        assert_eq!(command("/system  Be terse. "), Command::System("Be terse.".into()));
        assert_eq!(command("/system"), Command::System(String::new()));
        assert_eq!(command("/save a file.json"), Command::Save("a file.json".into()));
        let set = Command::Set { name: "stop".into(), value: "two words".into() };
        assert_eq!(command("/set stop  two words"), set);
    }

    #[test]
    fn a_command_that_is_none_is_refused_by_its_name() {
        for (line, wanted) in [
            ("/halp", "unknown command \"/halp\""),
            ("/", "unknown command \"/\""),
            ("/\u{1b}[2J", "unknown command \"/\\u{1b}[2J\""),
            ("/Help", "unknown command \"/Help\""),
            ("/reset now", "/reset: wanted nothing behind it, found \"now\""),
            ("/save", "/save: wanted a file, found nothing"),
            ("/set temperature", "/set: wanted a name and a value, as temperature 0.5, found \"temperature\""),
        ] {
            let refused = Line::read(line).unwrap_err();
            assert!(refused.starts_with(wanted), "{line}: {refused}");
        }
    }
}
