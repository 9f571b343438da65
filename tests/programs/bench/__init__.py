"""What bin/bench runs: this project beside its peers, in one run on one machine.

`plan` says what is measured and how often, `rounds` runs each unit in a process of its own (`unit`), `report` and
`claims` say what came out. The modules between measure: `calls`, `routes`, `servers`, `deadlines`, `ceiling`.
"""
