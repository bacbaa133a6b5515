//! What a template writes around an assistant's turn, and what of it a turn's text brings along: found by rendering
//! stand-ins, since a template is code.
#![forbid(unsafe_code)]

use super::chat::{After, Breaker, encode_append};
use super::json::Json;
use super::messages::message;
use super::template::{ChatTemplate, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// The id with which the template that `options` choose closes an assistant's turn, where the first thing that it writes
/// behind the turn's text is a token. None where it closes by text or not at all (what follows then is the beginning of
/// the next message), or cannot be asked. Errors: what stopped the asking (`Cancelled`, `OutOfHostMemory`, the deadline).
pub fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate, options: &RenderOptions) -> Result<Option<i32>> {
    let watch = options.watch.begun();
    let options = RenderOptions { watch: watch.clone(), ..options.clone() };
    let breaker = Breaker::new(tokenizer, template, &Json::List(Vec::new()), &options);
    let Some(breaker) = watch.answer(breaker)? else { return Ok(None) };
    let Some(options) = watch.answer(breaker.options(&options))? else { return Ok(None) };
    let options = RenderOptions { add_generation_prompt: false, continue_final_message: false, ..options };
    // The user's text is a character of its own too, so that the beginning of a message can be told from a turn's end.
    let (user, said) =
        (message("user", &breaker.nonce.to_string()), message("assistant", &breaker.sentinel.to_string()));
    let turn = vec![user.clone(), said];
    if let Some(rendering) = watch.answer(template.render(Json::List(turn.clone()), &options))?
        && let Some((_, behind)) = rendering.split_once(breaker.sentinel)
        && let Some(end) = breaker.first_token(behind)
    {
        return Ok(Some(end));
    }
    // A template may close a turn only where something follows it.
    let followed = template.render(Json::List([turn, vec![user]].concat()), &options);
    let Some(rendering) = watch.answer(followed)? else { return Ok(None) };
    let between = || {
        let (before, behind) = rendering.split_once(breaker.sentinel)?;
        let ((opening, _), (between, _)) = (before.split_once(breaker.nonce)?, behind.split_once(breaker.nonce)?);
        if opening.ends_with(between) { None } else { breaker.first_token(between) }
    };
    Ok(between())
}

/// The ids that begin an assistant's turn under every setting of the template: what the generation prompts with and
/// without thinking have in common. Empty where they have nothing in common.
pub fn generation_prompt(tokenizer: &Tokenizer, template: &ChatTemplate, options: &RenderOptions) -> Result<Vec<i32>> {
    let prompt = |thinking: Option<bool>| {
        let mut options = RenderOptions { add_generation_prompt: true, ..options.clone() };
        if let Some(thinking) = thinking {
            options.variables.retain(|(name, _)| name != "enable_thinking");
            options.variables.push(("enable_thinking".into(), thinking.into()));
        }
        encode_append(tokenizer, template, After::Messages, Json::List(Vec::new()), &options)
    };
    let mut common = prompt(None)?;
    if template.reads("enable_thinking") {
        for thinking in [true, false] {
            let other = prompt(Some(thinking))?;
            let same = common.iter().zip(&other).take_while(|(a, b)| a == b).count();
            common.truncate(same);
        }
    }
    Ok(common)
}

/// What of a turn's text is still to be said behind the ids `before`: a generation prompt may have written its beginning,
/// such as an empty thought, which a model that goes on from there does not say again.
pub fn unsaid<'t>(tokenizer: &Tokenizer, before: &[i32], text: &'t str) -> &'t str {
    let opened = before.iter().rposition(|&id| tokenizer.is_special(id)).map_or(0, |at| at + 1);
    let prompt = &before[opened..];
    let added = (0..prompt.len()).filter(|&at| tokenizer.is_added(prompt[at]));
    let mut written = added.map(|at| tokenizer.decode(&prompt[at..], false));
    written.find_map(|written| text.strip_prefix(written.as_str())).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::super::tiny_tokenizer::tiny_tokenizer_json;
    use super::super::tokenizer::Control;
    use super::super::watch::Watch;
    use super::*;
    use crate::error::Fault;
    use std::collections::BTreeMap;

    const QWEN3: &str = include_str!("../../tests/golden/qwen3_chat_template.jinja");

    fn tiny() -> Tokenizer {
        Tokenizer::from_json(&tiny_tokenizer_json()).unwrap()
    }

    fn end(source: &str) -> Option<i32> {
        end_of_turn(&tiny(), &ChatTemplate::compile(source).unwrap(), &RenderOptions::default()).unwrap()
    }

    #[test]
    fn the_end_of_a_turn_is_the_token_that_comes_first_behind_its_text() {
        let each = |says: &str| format!("{{% for m in messages %}}{{% if m.role %}}{says}{{% endif %}}{{% endfor %}}");
        assert_eq!(end(QWEN3), Some(266));
        assert_eq!(end(&each("{{ m.content }}<|endoftext|>")), Some(264));
        assert_eq!(end(&each("{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}")), Some(266));
        // By text, by nothing at all, or by what only begins the next message.
        assert_eq!(end(&each("{{ m.role }}: {{ m.content }}\n<|im_end|>")), None);
        assert_eq!(end(&each("{{ m.content }}")), None);
        assert_eq!(end(&each("<|im_start|>{{ m.content }}")), None);
        assert_eq!(end(&each("<|im_start|>{{ m.role }}\n{{ m.content }}")), None);
        // A template that cannot be asked is no error.
        assert_eq!(end("{{ raise_exception('no') }}"), None);
        assert_eq!(end("{% for m in messages %}{{ m.content | length }}{% endfor %}"), None);
    }

    #[test]
    fn what_stops_the_asking_is_no_answer() {
        // At each look of the watch in turn; every rendering takes some.
        let source = format!("{{% for i in range(4000) %}}{{{{ '' }}}}{{% endfor %}}{QWEN3}");
        let template = ChatTemplate::compile(&source).unwrap();
        let asked = |at: usize| {
            let looks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let watch = Watch::on({
                let looks = looks.clone();
                move || looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst) >= at
            });
            let options = RenderOptions { watch, ..RenderOptions::default() };
            let new = Json::List(vec![message("user", "hello")]);
            let after = After::Turn { said: &[104, 105, 266], ends: &[266] };
            let ids = encode_append(&tiny(), &template, after, new, &options);
            let end = end_of_turn(&tiny(), &template, &options);
            (ids, end, looks.load(std::sync::atomic::Ordering::SeqCst))
        };
        let (wanted, end, looks) = asked(usize::MAX);
        let wanted = wanted.unwrap();
        assert_eq!(end.unwrap(), Some(266));
        assert!(looks > 12, "{looks}");
        for at in 0..looks {
            let (ids, end, _) = asked(at);
            match ids {
                Ok(ids) => assert_eq!(ids, wanted, "stopped at look {at}"),
                Err(e) => assert_eq!(e.fault(), Fault::Cancelled),
            }
            assert_eq!(end.unwrap_err().fault(), Fault::Cancelled);
        }
    }

    #[test]
    fn every_named_template_has_an_end_of_its_own() {
        let sources = [("default", "<|im_end|>"), ("tool_use", "<|endoftext|>")].map(|(name, end)| {
            (name.into(), format!("{{% for m in messages %}}{{{{ m.content }}}}{end}{{% endfor %}}"))
        });
        let template = ChatTemplate::compile_all(&BTreeMap::from(sources)).unwrap();
        let end = |options| end_of_turn(&tiny(), &template, &options).unwrap();
        assert_eq!(end(RenderOptions::default()), Some(266));
        assert_eq!(end(RenderOptions { tools: Some(Json::List(Vec::new())), ..Default::default() }), Some(264));
        assert_eq!(end(RenderOptions { template: Some("tool_use".into()), ..Default::default() }), Some(264));
        assert_eq!(end(RenderOptions { template: Some("none".into()), ..Default::default() }), None);
    }

    #[test]
    fn what_the_prompt_has_written_is_not_said_again() {
        let tokenizer = tiny();
        let opened = "<|im_start|>user\n<think>\n\n</think>\n\n<|im_end|>\n<|im_start|>assistant\n";
        for (thought, text, rest) in [
            ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\nok", "ok"),
            ("<think>\n\n</think>\n\n", "ok", "ok"),
            ("<think>\n\n</think>\n\n", "<think>\nplan\n</think>\n\nok", "<think>\nplan\n</think>\n\nok"),
            ("<think>\n", "<think>\nplan\n</think>\n\nok", "plan\n</think>\n\nok"),
            ("<think>\n", "<think>\n\nplan", "\nplan"),
            ("", "<think>\n\n</think>\n\nok", "<think>\n\n</think>\n\nok"),
            ("", "\nok", "\nok"),
            ("", "assistant\nok", "assistant\nok"),
        ] {
            let before = tokenizer.encode(&format!("{opened}{thought}"), Control::All);
            assert_eq!(unsaid(&tokenizer, &before, text), rest, "{thought:?} {text:?}");
        }
        assert_eq!(unsaid(&tokenizer, &[], "ok"), "ok");
    }
}
