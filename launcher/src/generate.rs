//! `launcher generate`: a text model goes on with a text, token by token.

use convoy_proto::order;
use convoy_worker::{
    data::{Form, HostBatch, vocabulary::Vocabulary},
    learner::Replica,
    task::TaskEntry,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    args::{GenerateArgs, Places},
    cli::{print, say},
    finished::{self, Finished},
    outcome::Failure,
};

/// Prints the prompt and what the model makes of it.
///
/// # Errors
/// A run that is not there or is no text model, or a prompt that has no tokens.
pub fn generate(args: &GenerateArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    if !args.temperature.is_finite() || args.temperature < 0.0 {
        return Err(Failure::Usage(format!("--temperature {}: must be at least 0", args.temperature)));
    }
    let Finished { config, data, replica, .. } = finished::open(&args.run, places, tasks)?;
    let Form::Tokens { context, .. } = data.info().form else {
        return Err(Failure::Usage(format!(
            "the run {} is no text model: its task is `{}`",
            args.run.run, config.task
        )));
    };
    let vocabulary = Vocabulary::open(config.input.tokenizer.as_deref())?;
    let mut text = vocabulary.encode(&args.prompt).map_err(|problem| Failure::Usage(format!("--prompt: {problem}")))?;
    if text.is_empty() {
        return Err(Failure::Usage("--prompt: must not be empty".into()));
    }
    let mut choice =
        Choice { temperature: args.temperature, top_k: args.top_k, rng: ChaCha8Rng::seed_from_u64(args.seed) };
    let mut shown = 0;
    for _ in 0..args.tokens {
        shown += show(&vocabulary.decode(&text), shown)?;
        let logits = next(&*replica, &text[text.len().saturating_sub(context)..]);
        text.push(choice.choose(&logits));
    }
    say(vocabulary.decode(&text).get(shown..).unwrap_or_default())
}

/// Prints what is new in a text, but for a character that is not whole yet; gives how many bytes that was.
fn show(text: &str, shown: usize) -> Result<usize, Failure> {
    let fresh = text.get(shown..).unwrap_or_default().trim_end_matches(char::REPLACEMENT_CHARACTER);
    print(fresh)?;
    Ok(fresh.len())
}

/// The logits of the token after those seen.
fn next(replica: &dyn Replica, seen: &[u32]) -> Vec<f32> {
    // A window is followed by the token to predict, which is not known and not looked at.
    let tokens = seen.iter().chain([&0]).map(|token| *token as i32).collect();
    let output = replica.output(HostBatch { rows: 1, tokens, ..HostBatch::default() });
    output.values[output.values.len() - output.width..].to_vec()
}

struct Choice {
    temperature: f64,
    top_k: usize,
    rng: ChaCha8Rng,
}

impl Choice {
    fn choose(&mut self, logits: &[f32]) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let kept = if self.top_k == 0 { order.len() } else { self.top_k.min(order.len()) };
        let order = &order[..if self.temperature == 0.0 { 1 } else { kept }];
        let weight = |token: usize| (f64::from(logits[token] - logits[order[0]]) / self.temperature).exp();
        let weights: Vec<f64> = order.iter().map(|token| if order.len() == 1 { 1.0 } else { weight(*token) }).collect();
        let mut at = order::unit(&mut self.rng) * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            at -= weight;
            at < 0.0
        });
        order[chosen.unwrap_or(0)] as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(temperature: f64, top_k: usize) -> [u32; 3] {
        let mut choice = Choice { temperature, top_k, rng: ChaCha8Rng::seed_from_u64(1) };
        let mut counts = [0; 3];
        (0..3000).for_each(|_| counts[choice.choose(&[0.0, 2f32.ln(), 3f32.ln()]) as usize] += 1);
        counts
    }

    #[test]
    fn tokens_are_chosen_by_their_probability() {
        let [a, b, c] = counts(1.0, 0);
        assert!((400..600).contains(&a) && (900..1100).contains(&b) && (1400..1600).contains(&c), "{a} {b} {c}");
        assert_eq!(counts(0.0, 0), [0, 0, 3000]);
        assert_eq!(counts(1.0, 2)[0], 0);
        assert!(counts(0.25, 0)[2] > 2400, "the colder, the surer");
    }
}
