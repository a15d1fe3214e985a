//! What an engine says of itself: vLLM's metrics in, a few figures out. Steps, waiting requests and preemptions decide something;
//! running ones and KV usage are read beside them.
//!
//! A page in Prometheus' text format enters. Engines of data-parallel ranks are added up, their KV caches aren't: the fullest one counts.
//! Families that vLLM leaves out (`--disable-log-stats`) or that were renamed are absent, never zero by guess.

/// One look at an engine's metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineStats {
    /// Engine steps since its start (`vllm:iteration_tokens_total_count`); absent without statistics.
    pub steps: Option<u64>,
    /// Sequences in the batch, of all who ask this engine.
    pub requests_running: u64,
    /// Requests that wait in the engine, of all who ask it.
    pub requests_waiting: u64,
    /// 0 to 1.
    pub kv_cache_usage_ratio: f64,
    /// Since its start.
    pub preemptions: u64,
    /// When its server started, in seconds since the epoch; another figure is another process.
    pub started_s: Option<f64>,
}

impl EngineStats {
    /// Of a page of metrics; `None` if it is no vLLM's.
    pub fn read(page: &str) -> Option<EngineStats> {
        let mut stats = EngineStats::default();
        let mut is_vllm = false;
        for line in page.lines() {
            let Some((name, value)) = line.strip_prefix("vllm:").and_then(sample) else {
                if line.starts_with("process_start_time_seconds") {
                    stats.started_s = sample(line).map(|(_, value)| value);
                }
                continue;
            };
            // Counts are written as floats; `as` saturates.
            let count = value as u64;
            match name {
                "iteration_tokens_total_count" => stats.steps = Some(stats.steps.unwrap_or(0).saturating_add(count)),
                "num_requests_running" => {
                    is_vllm = true;
                    stats.requests_running = stats.requests_running.saturating_add(count);
                }
                "num_requests_waiting" => {
                    is_vllm = true;
                    stats.requests_waiting = stats.requests_waiting.saturating_add(count);
                }
                "kv_cache_usage_perc" => {
                    stats.kv_cache_usage_ratio = stats.kv_cache_usage_ratio.max(value.clamp(0.0, 1.0));
                }
                "num_preemptions_total" => stats.preemptions = stats.preemptions.saturating_add(count),
                _ => {}
            }
        }
        (is_vllm || stats.steps.is_some()).then_some(stats)
    }
}

/// Name and value of one line. The value stands behind the last space: a label may hold spaces and braces.
fn sample(line: &str) -> Option<(&str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value: f64 = value.parse().ok()?;
    let name = series.split('{').next()?;
    value.is_finite().then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as vLLM 0.12 and 0.32 write them.
    fn page(engine: u32, steps: &str) -> String {
        format!(
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n\
             # TYPE vllm:num_requests_running gauge\n\
             vllm:num_requests_running{{engine=\"{engine}\",model_name=\"a {{b}} c\"}} 2.0\n\
             vllm:num_requests_waiting{{engine=\"{engine}\",model_name=\"m\"}} 3.0\n\
             vllm:num_requests_waiting_by_reason{{engine=\"{engine}\",model_name=\"m\",reason=\"capacity\"}} 3.0\n\
             vllm:kv_cache_usage_perc{{engine=\"{engine}\",model_name=\"m\"}} 0.{engine}5\n\
             vllm:num_preemptions_total{{engine=\"{engine}\",model_name=\"m\"}} 1.0\n\
             vllm:num_preemptions_created{{engine=\"{engine}\",model_name=\"m\"}} 1.79e+09\n\
             vllm:iteration_tokens_total_bucket{{engine=\"{engine}\",le=\"1.0\",model_name=\"m\"}} 7.0\n{steps}"
        )
    }

    #[test]
    fn the_figures_are_read_off_the_page() {
        let steps = "vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"m\"} 1081.0\n";
        let one = EngineStats {
            steps: Some(1081),
            requests_running: 2,
            requests_waiting: 3,
            kv_cache_usage_ratio: 0.05,
            preemptions: 1,
            started_s: None,
        };
        let two = EngineStats {
            steps: Some(2162),
            requests_running: 4,
            requests_waiting: 6,
            kv_cache_usage_ratio: 0.15,
            preemptions: 2,
            started_s: None,
        };
        let started = EngineStats {
            started_s: Some(1.7845e9),
            ..one
        };
        for (page, stats) in [
            (page(0, steps), Some(one)),
            (page(0, ""), Some(EngineStats { steps: None, ..one })),
            (format!("{}{}", page(0, steps), page(1, steps)), Some(two)),
            (
                format!("process_start_time_seconds 1.7845e+09\n{}", page(0, steps)),
                Some(started),
            ),
            ("process_start_time_seconds 1.79e+09\n".to_owned(), None),
            ("{\"detail\":\"Not Found\"}".to_owned(), None),
            (String::new(), None),
            (
                "vllm:num_requests_running{} NaN\nvllm:num_requests_running\nvllm: 1\n".to_owned(),
                None,
            ),
        ] {
            assert_eq!(EngineStats::read(&page), stats, "{page}");
        }
    }
}
