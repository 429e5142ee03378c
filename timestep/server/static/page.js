// The page at /: what the service does, and a chat. Everything is asked for over the HTTP API, with the key that a
// person has given, if the service wants one. What came over the network is shown as text, never as HTML.
'use strict';

const KEY = 'timestep-key';
const SHOWN = 15;
const POLL = 2000;
const WORDS = {
  not_started: ['starts soon', 'going'], in_progress: ['runs', 'going'], succeeded: ['done', 'good'],
  waiting_approval: ['waits for approval', 'waits'], waiting_feedback: ['asks', 'waits'],
  failed: ['failed', 'bad'], cancelled: ['cancelled', ''], cancelling: ['is cancelled', 'going'],
  validating: ['is checked', 'going'], finalizing: ['ends', 'going'], completed: ['done', 'good'], expired: ['expired', 'bad'],
};
const $ = (id) => document.getElementById(id);
const prefect = prefectUi();
let history = [];
let answering = null;
let polling = null;
let turns = 0;

// The Prefect UI listens beside this server: whoever reached this machine by another name reaches it by that too.
function prefectUi() {
  const url = new URL(document.querySelector('meta[name=prefect-ui]').content);
  if (url.hostname === '127.0.0.1') url.hostname = location.hostname;
  return url.href.replace(/\/$/, '');
}

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: 'no-store' });
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Refused(response.status, said.error?.message ?? `${path} answers ${response.status}.`);
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function seconds(from, to) {
  const took = Math.max(0, (new Date(to ?? Date.now()) - new Date(from)) / 1000);
  if (took < 60) return `${took.toFixed(took < 10 ? 1 : 0)} s`;
  return took < 3600 ? `${Math.floor(took / 60)} min` : `${Math.floor(took / 3600)} h`;
}

function short(text) {
  const made = element('td', text, 'short');
  made.title = text;
  return made;
}

function row({ run, status, name, notes, group, created, started, ended }) {
  const made = document.createElement('tr');
  const [word, kind] = WORDS[status] ?? [status, ''];
  const [state, what] = [element('td'), element('td')];
  state.append(element('span', word, `status ${kind}`));
  const link = element('a', name);
  link.href = `${prefect}/runs/flow-run/${run}`;
  what.append(link, ...notes.map((note) => element('small', note)));
  const time = new Date(started ?? created).toLocaleTimeString([], { hourCycle: 'h23' });
  made.append(state, what, short(group), short(time), short(started ? seconds(started, ended) : ''));
  return made;
}

function ofStep(step) {
  const calls = step.pending.map((call) => `${call.tool}(${call.arguments})`);
  return {
    run: step.id, status: step.status, name: `${step.agent} ${step.mode === 'training' ? 'learns' : 'thinks'}`,
    notes: step.status === 'failed' ? [step.error ?? ''] : calls, group: step.session_id ?? '',
    created: step.created, started: step.started, ended: step.ended,
  };
}

function ofBatch(batch) {
  const time = (at) => at && at * 1000;
  const { total, completed, failed } = batch.request_counts ?? {};
  return {
    // A batch's id is its flow run's.
    run: batch.id.replace(/^batch_/, '').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-'), status: batch.status,
    name: `batch ${batch.endpoint}`, notes: total ? [`${completed} of ${total} done, ${failed} failed`] : [],
    group: '', created: time(batch.created_at), started: time(batch.in_progress_at),
    ended: time(batch.completed_at ?? batch.failed_at ?? batch.cancelled_at ?? batch.expired_at),
  };
}

async function newest(kind) {
  try {
    return (await (await ask(`/v1/${kind}?limit=${SHOWN}`)).json()).data;
  } catch (error) {
    if (error.status === 403) return []; // not for this key
    throw error;
  }
}

async function showWork() {
  const [steps, batches] = await Promise.all(['steps', 'batches'].map(newest));
  const work = [...steps.map(ofStep), ...batches.map(ofBatch)];
  work.sort((one, other) => new Date(other.created) - new Date(one.created));
  $('work').replaceChildren(...work.slice(0, SHOWN).map(row));
  $('idle').hidden = work.length > 0;
}

async function showHealth() {
  const healthy = await fetch('/health', { cache: 'no-store' }).then((response) => response.ok, () => false);
  $('health').textContent = healthy ? 'ready' : 'the model server is away';
  $('health').className = healthy ? 'good' : 'bad';
}

async function showModels() {
  const models = (await (await ask('/v1/models')).json()).data;
  const chosen = $('model').value;
  $('model').replaceChildren(...models.map((model) => element('option', model.id)));
  if (models.some((model) => model.id === chosen)) $('model').value = chosen;
}

function trouble(error) {
  $('trouble').hidden = !error;
  $('trouble').textContent = error ? error.message : '';
}

function lock(message) {
  turns++;
  clearTimeout(polling);
  sessionStorage.removeItem(KEY);
  $('inside').hidden = $('forget').hidden = true;
  $('unlock').hidden = false;
  trouble(message ? new Error(message) : null);
  $('key').focus();
}

async function refresh() {
  const turn = ++turns;
  clearTimeout(polling);
  const models = $('model').options.length ? [] : [showModels()];
  // All of them, whichever fails: where no work can be seen, there may still be a model to talk to.
  const came = await Promise.allSettled([showHealth(), showWork(), ...models]);
  if (turn !== turns) return; // another one has begun meanwhile, with another key
  const errors = came.filter((one) => one.status === 'rejected').map((one) => one.reason);
  const shut = errors.find((error) => error.status === 401);
  if (shut) return lock(sessionStorage.getItem(KEY) && shut.message);
  const [error] = errors;
  trouble(error && !(error instanceof Refused) ? new Error('The service does not answer.') : error);
  $('unlock').hidden = true;
  $('inside').hidden = false;
  $('forget').hidden = !sessionStorage.getItem(KEY);
  polling = setTimeout(refresh, POLL);
}

// The data of a stream of server-sent events, one by one (HTML standard, section 9.2).
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value ?? '')).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith('data: ')) yield line.slice(6);
    if (done) return;
  }
}

function say(className, text) {
  const made = element('p', text, className);
  $('log').append(made);
  $('log').scrollTop = $('log').scrollHeight;
  return made;
}

async function chat(text) {
  const asked = [...history, { role: 'user', content: text }];
  say('user', text);
  const answer = say('asked', '');
  answering = new AbortController();
  busy(true);
  try {
    const body = JSON.stringify({ model: $('model').value, messages: asked, stream: true });
    const response = await ask('/v1/chat/completions', {
      method: 'POST', body, signal: answering.signal, headers: { 'content-type': 'application/json' },
    });
    for await (const data of events(response)) {
      if (data === '[DONE]') break;
      const said = JSON.parse(data);
      if (said.error) throw new Error(said.error.message);
      answer.textContent += said.choices[0]?.delta.content ?? '';
      $('log').scrollTop = $('log').scrollHeight;
    }
  } catch (error) {
    if (error.status === 401) lock(error.message);
    else if (error.name !== 'AbortError') say('error', error.message);
  }
  // An answer that was stopped in the middle is part of the conversation; a question without any is not.
  if (answer.textContent) history = [...asked, { role: 'assistant', content: answer.textContent }];
  else answer.remove();
  answer.className = '';
  busy(false);
}

function busy(is) {
  $('send').disabled = is;
  $('stop').hidden = !is;
  if (!is) answering = null;
}

$('prefect').href = prefect;
$('unlock').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $('key').value.trim());
  $('key').value = '';
  refresh();
});
$('forget').addEventListener('click', () => lock());
$('chat').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('text').value.trim();
  if (!text || answering) return;
  $('text').value = '';
  chat(text);
});
$('text').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $('chat').requestSubmit();
});
$('stop').addEventListener('click', () => answering?.abort());
$('clear').addEventListener('click', () => {
  answering?.abort();
  history = [];
  $('log').replaceChildren();
});
refresh();
