"""`python -m zoo`, in tests: prunes every network, writes how many parameters are left to expected.json."""

import json

import slimfast
from zoo import CASES, RECORDS, SCENARIOS


def main() -> None:
    records = {
        name: {
            scenario: slimfast.prune(case.masked(scenario), case.inputs(2)).report.params_after
            for scenario in SCENARIOS
        }
        for name, case in sorted(CASES.items())
    }
    lines = [f'  "{name}": {json.dumps(sizes)}' for name, sizes in records.items()]
    RECORDS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
