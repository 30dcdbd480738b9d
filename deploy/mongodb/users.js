// Makes the farm's role and its users on the server that mongosh is connected to, by the statements in users.json.
// What is there already is brought up to date: run it again to change a password. docs/mongodb.md shows how.
// FARM_DATABASE, CONTROLLER_PASSWORD and WORKER_PASSWORD must be in the environment.
const fs = require("fs");
const path = require("path");

const EXISTS = [51002, 51003]; // of a role, of a user

function filled(value) {
  if (typeof value === "string") {
    return value.replace(/^\$\{(\w+)\}$/, (_, name) => {
      if (!process.env[name]) {
        throw new Error(`${name} is not set in the environment`);
      }
      return process.env[name];
    });
  }
  if (Array.isArray(value)) {
    return value.map(filled);
  }
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, filled(one)]));
  }
  return value;
}

const statements = filled(JSON.parse(fs.readFileSync(path.join(__dirname, "users.json"), "utf8")));
const farm = db.getSiblingDB(process.env.FARM_DATABASE);
for (const statement of statements) {
  const [command, ...rest] = Object.entries(statement);
  const [verb, name] = command;
  try {
    farm.runCommand(statement);
    print(`${verb} ${name}: done`);
  } catch (error) {
    if (!EXISTS.includes(error.code)) {
      throw error;
    }
    const update = verb.replace("create", "update");
    farm.runCommand(Object.fromEntries([[update, name], ...rest]));
    print(`${update} ${name}: done`);
  }
}
