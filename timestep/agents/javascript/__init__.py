"""Run state across languages: a run that waits for approvals goes on in the other language's Agents SDK.

Measured with openai-agents 0.24.0 (schema 1.21) and @openai/agents 0.20.0 (schema 1.22), two unrelated series.
``to_javascript`` writes schema 1.17 of JavaScript, which ``RunState.fromString(agent, text)`` loads;
``from_javascript`` reads 1.17 to 1.22 and has Python load its own 1.14. Both are older than the fingerprints
that bind a decision to a call, so that the SDK that loads the state computes its own.

    carried                     how
    input, responses, items     messages, function calls and results, reasoning, compaction, handoffs; calls that
                                the provider made itself (web and file search, code, images, MCP), as history
    arguments, outputs, names   untouched
    other fields of an item     in JavaScript's providerData, from where they come back
    calls that wait             with the agent that made them; of agents as tools too, at any depth
    decisions                   by agent, tool and call id: approved, rejected with its message, always. An agent
                                as a tool shares its caller's in JavaScript: "always" holds for all its runs there
    context, tool input         a dictionary; none is an empty one in JavaScript. It comes back equal, in JavaScript's
                                spelling: 1.0 as 1, since its numbers are of one kind; keys that are integers first
    custom data                 of tool results
    usage                       details added up; inner counts under their path
    guardrail results           on the input, as the proof that it was let through; on tools
    trace                       id, workflow, group and metadata; spans go on in it
    conversation, previous      the server's ids
    session                     how many items it holds already; the session itself is the application's to move
    MCP tool calls              that have been answered

    left behind, as nothing in a run that goes on reads it
    providerData of a response  JavaScript's copy of what the provider answered: items, ids, usage are carried
    provider_data of an item    Python's note which model answered; refused where it holds more, such as signatures
    copies of a completion      JavaScript's, in items that a Chat Completions message was taken apart into
    empty annotations, logprobs
    boundary of guardrails'     which results of tools' guardrails are of the current response: both SDKs keep them
    results                     back until the output has passed, and show all of them after a transfer
    prompt cache key            Python's; JavaScript makes its own
    labels of tools             description, title and origin, which the loading agent's tools have themselves
    endpoint in usage           JavaScript's
    a tool's value that is no   JavaScript keeps the text that the model saw; refused where the agent may answer
    text                        with the value itself
    hash of a tracing key       Python's

    rebuilt by the loading SDK
    fingerprints, invocations, session items and their indexes, the span of the agent at work

    refused, with its place     StateTransferError
    input guardrails            not shown to have run: JavaScript goes on only with proof
    a run that waits for no     it has ended, or stopped between turns
    approval
    input for the next turn     Python's pending_input (JavaScript's is carried)
    context of another type     a dataclass, a pydantic model, any object
    numbers                     beyond 2**53 in the context or a tool's input or data; infinities
    tools                       computer, shell, apply_patch, custom, hosted MCP approvals, tool search, programs,
                                functions in namespaces; MCP calls that wait
    messages                    developer role, audio, lists as a system message
    agents                      two of one name, which the SDKs number differently; or one the graph lacks
    tools and handoffs          that the loading agent lacks
    unsettled session writes, sandboxes, nested handoff histories, items a handoff's filter hid, tracing keys

Handoffs need the same name in both: by default Python writes ``transfer_to_billing`` in small letters and JavaScript
keeps the agent's capitals.
"""

from timestep.agents.javascript.reader import from_javascript
from timestep.agents.javascript.writer import to_javascript

__all__ = ["from_javascript", "to_javascript"]
