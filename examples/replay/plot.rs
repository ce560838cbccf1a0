//! Allowed and denied requests over the time of the log, as a picture.
#![expect(clippy::cast_precision_loss, reason = "a picture is a few hundred points high")]

use std::fmt::Write as _;

/// As many as the picture is wide; half as many when they get wider.
const BINS: i64 = 480;
/// Of the picture.
const HEIGHT: f64 = 200.0;

pub(crate) struct Plot {
    /// Allowed and denied.
    bins: Vec<[u64; 2]>,
    /// Nanoseconds.
    width: i64,
}

impl Default for Plot {
    fn default() -> Self {
        Self { bins: Vec::new(), width: 1_000_000_000 }
    }
}

impl Plot {
    /// `after` so many nanoseconds.
    pub(crate) fn add(&mut self, after: i64, allowed: bool) {
        while after / self.width >= BINS {
            self.width *= 2;
            self.bins = self
                .bins
                .chunks(2)
                .map(|two| two.iter().fold([0; 2], |sum, bin| [sum[0] + bin[0], sum[1] + bin[1]]))
                .collect();
        }
        let at = usize::try_from(after / self.width).unwrap_or(0);
        if at >= self.bins.len() {
            self.bins.resize(at + 1, [0; 2]);
        }
        self.bins[at][usize::from(!allowed)] += 1;
    }

    pub(crate) fn svg(&self) -> String {
        let most = self.bins.iter().map(|bin| bin[0] + bin[1]).max().unwrap_or(0).max(1) as f64;
        let seconds = self.width / 1_000_000_000;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n\
             <text x=\"10\" y=\"16\">requests in {seconds} s, {most} at most: <tspan fill=\"#1f7a5c\">allowed</tspan>, \
             <tspan fill=\"#b8441f\">denied</tspan></text>\n",
            w = BINS + 20,
            h = HEIGHT + 30.0,
        );
        for (at, [allowed, denied]) in self.bins.iter().enumerate() {
            let (allowed, denied) = (*allowed as f64 / most * HEIGHT, *denied as f64 / most * HEIGHT);
            let bottom = HEIGHT + 24.0;
            for (from, height, colour) in [(0.0, allowed, "#1f7a5c"), (allowed, denied, "#b8441f")] {
                if height > 0.0 {
                    let (x, y) = (at + 10, bottom - from - height);
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{x}\" y=\"{y:.1}\" width=\"1\" height=\"{height:.1}\" fill=\"{colour}\"/>"
                    );
                }
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}
