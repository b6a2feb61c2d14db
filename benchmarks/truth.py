"""The meter against a server that writes down the truth: `python -m benchmarks.truth`.

Three plans, three rates, at least 10,000 samples each: p50 and p99 from sent, beside the server's own record
of the same requests. `--quick` takes a tenth of the samples.
"""

import sys

from truth import Compared

PLANS = ("fixed", "stall", "bimodal")
RATES = (300, 2_000, 10_000)


def main() -> int:
    samples = 1_000 if "--quick" in sys.argv else 10_200
    worst = 0.0
    for rate in RATES:
        for plan in PLANS:
            many = 100_500 if rate == 10_000 and samples > 10_000 else samples
            percentiles = (50, 99, 99.9) if many > 100_000 else (50, 99)
            found = Compared(plan, rate, many / rate, percentiles)
            worst = max(worst, found.off())
            shown = "  ".join(
                f"p{at:g} {got:9,.1f} / {true:9,.1f}" for at, (got, true) in found.figures.items()
            )
            stalls = len(found.measured.stalls)
            print(
                f"{plan:8} {rate:6}/s {found.samples:7} samples  {shown}  off {found.off():.2f} of what is "
                f"allowed; {stalls} stalls of the generator",
                flush=True,
            )
    return int(worst > 1.0)


if __name__ == "__main__":
    sys.exit(main())
